-- ARGV: offset, session.
local epoch = held(ARGV[2])
if epoch then
  redis.call('HDEL', LEASES, ARGV[2])
  raise_floor(epoch)
end
return 1
