-- ARGV: offset, incarnation, load or ''. Returns 0: dead, 1: alive, 2: asked to drain.
local _, incarnation, load = unpack(ARGV)
local ttl = redis.call('HGET', TTL, incarnation)
-- The dead stay dead: a beat that comes too late must not bring back leases that others may count on.
if not ttl or not alive(incarnation) then
  return 0
end
redis.call('ZADD', NODES, whole(now + ttl), incarnation)
if load ~= '' then
  redis.call('HSET', LOAD, incarnation, load)
end
return 1 + redis.call('SISMEMBER', DRAIN, incarnation)
