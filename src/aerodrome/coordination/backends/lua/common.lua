-- What every script begins with. Times are microseconds of the server's own clock, so that nodes need not agree on
-- theirs. KEYS[1..8] are the same for all; ARGV[1] moves the clock (tests only).
--
-- nodes   sorted set: incarnation -> when it dies unless it beats
-- node    hash: incarnation -> JSON of name, address, peer token
-- ttl     hash: incarnation -> microseconds that a beat gives it
-- load    hash: incarnation -> JSON of what it says of itself
-- drain   set: incarnations that are to be told to drain
-- leases  hash: session -> "EPOCH INCARNATION", for those that are held
-- floor   the highest epoch of any lease that was given back or forgotten
-- places  hash: place -> JSON of whose it is and the caps it counts under
local NODES, NODE, TTL, LOAD, DRAIN, LEASES, FLOOR, PLACES = unpack(KEYS, 1, 8)

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] + tonumber(ARGV[1])

-- Lua's own way of writing a number loses digits.
local function whole(number)
  return string.format('%.0f', number)
end

local function alive(incarnation)
  local dies = redis.call('ZSCORE', NODES, incarnation)
  return dies and tonumber(dies) > now
end

-- Epoch and incarnation of the lease as it is stored; nothing when nobody holds it. The holder may be dead.
local function held(session)
  local lease = redis.call('HGET', LEASES, session)
  if lease then
    local epoch, incarnation = string.match(lease, '^(%d+) (.*)$')
    return tonumber(epoch), incarnation
  end
end

-- Whatever is taken for this session after its lease is gone gets a higher epoch.
local function raise_floor(epoch)
  if epoch > tonumber(redis.call('GET', FLOOR) or 0) then
    redis.call('SET', FLOOR, whole(epoch))
  end
end

local function bury(incarnation)
  redis.call('ZREM', NODES, incarnation)
  redis.call('HDEL', NODE, incarnation)
  redis.call('HDEL', TTL, incarnation)
  redis.call('HDEL', LOAD, incarnation)
  redis.call('SREM', DRAIN, incarnation)
end

-- Give the place back under each cap where `gone` says so of whoever has it; somebody else may have taken it since.
local function give_back(place, gone)
  local taken = redis.call('HGET', PLACES, place)
  if not taken then
    return
  end
  taken = cjson.decode(taken)
  local left = {}
  for _, cap in ipairs(taken.caps) do
    local whose = redis.call('HGET', cap, place)
    if whose and gone(whose) then
      redis.call('HDEL', cap, place)
    elseif whose then
      left[#left + 1] = cap
    end
  end
  if #left > 0 then
    redis.call('HSET', PLACES, place, cjson.encode({ whose = taken.whose, caps = left }))
  else
    redis.call('HDEL', PLACES, place)
  end
end
