-- ARGV: offset, session, incarnation, epoch. Returns 1, or 0: it was not theirs any more.
local _, session, incarnation, epoch = unpack(ARGV)
-- Compared and released in one script: between a read and a write the lease could change hands.
if redis.call('HGET', LEASES, session) ~= epoch .. ' ' .. incarnation then
  return 0
end
redis.call('HDEL', LEASES, session)
raise_floor(tonumber(epoch))
return 1
