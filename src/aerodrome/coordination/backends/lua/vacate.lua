-- ARGV: offset, place.
local taken = redis.call('HGET', PLACES, ARGV[2])
if taken then
  redis.call('HDEL', PLACES, ARGV[2])
  for _, cap in ipairs(cjson.decode(taken).caps) do
    redis.call('HDEL', cap, ARGV[2])
  end
end
return 1
