-- Returns incarnation, node, load of each that lives.
local found = {}
for _, incarnation in ipairs(redis.call('ZRANGEBYSCORE', NODES, '(' .. whole(now), '+inf')) do
  local node = redis.call('HGET', NODE, incarnation)
  if node then
    found[#found + 1] = { incarnation, node, redis.call('HGET', LOAD, incarnation) or '{}' }
  end
end
return found
