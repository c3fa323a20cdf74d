-- ARGV: offset, session, incarnation, floor. Returns the epoch, or 0: somebody else holds it, or we are dead.
local _, session, incarnation, floor = unpack(ARGV)
if not alive(incarnation) then
  return '0'
end
local epoch, holder = held(session)
if holder and holder ~= incarnation and alive(holder) then
  return '0'
end
epoch = whole(math.max(epoch or tonumber(redis.call('GET', FLOOR) or 0), tonumber(floor)) + 1)
redis.call('HSET', LEASES, session, epoch .. ' ' .. incarnation)
return epoch
