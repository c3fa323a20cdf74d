-- ARGV: offset, place, incarnation, number of rates, then limit and period of each rate, then limit of each cap.
-- KEYS[9...]: that of this admission, those of the rates, those of the caps.
-- Returns {0}: admitted, {1, number of the rate, microseconds to wait}, or {2, number of the cap}.
local place, incarnation, rates = ARGV[2], ARGV[3], tonumber(ARGV[4])
local admission, caps = KEYS[9], #KEYS - 9 - rates

-- One whose answer was lost has been counted, and is not counted again.
if rates > 0 and not redis.call('GET', admission) then
  -- A rate is the time at which the next admission is due if all came evenly (GCRA).
  local arrivals = {}
  for i = 1, rates do
    local limit, period = tonumber(ARGV[3 + 2 * i]), tonumber(ARGV[4 + 2 * i])
    local arrival = math.max(tonumber(redis.call('GET', KEYS[9 + i]) or 0), now)
    local wait = arrival - now - period * (limit - 1) / limit
    -- Each admission may have been rounded by a microsecond.
    if wait > limit then
      return { 1, i, whole(wait) }
    end
    arrivals[i] = arrival + period / limit
  end
  for i = 1, rates do
    -- Once it lies in the past it says as much as none.
    redis.call('SET', KEYS[9 + i], whole(arrivals[i]), 'PX', whole(math.ceil((arrivals[i] - now) / 1000) + 1000))
  end
  redis.call('SET', admission, '1', 'PX', 60000)
end

local names = {}
for i = 1, caps do
  local cap, limit = KEYS[9 + rates + i], tonumber(ARGV[4 + 2 * rates + i])
  if redis.call('HEXISTS', cap, place) == 0 and redis.call('HLEN', cap) >= limit then
    -- Only now does it matter who among them is dead.
    local taken = redis.call('HGETALL', cap)
    for j = 1, #taken, 2 do
      if not alive(taken[j + 1]) then
        redis.call('HDEL', cap, taken[j])
      end
    end
    if redis.call('HLEN', cap) >= limit then
      return { 2, i }
    end
  end
  names[i] = cap
end
if caps > 0 then
  local before = redis.call('HGET', PLACES, place)
  for _, cap in ipairs(before and cjson.decode(before).caps or {}) do
    names[#names + 1] = cap
  end
  for i = 1, caps do
    redis.call('HSET', names[i], place, incarnation)
  end
  redis.call('HSET', PLACES, place, cjson.encode({ whose = incarnation, caps = names }))
end
return { 0 }
