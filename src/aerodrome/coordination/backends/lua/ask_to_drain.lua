-- ARGV: offset, incarnation. Returns 1, or 0: it is not alive.
if not alive(ARGV[2]) then
  return 0
end
redis.call('SADD', DRAIN, ARGV[2])
return 1
