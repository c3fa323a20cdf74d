-- ARGV: offset, cursor. Looks at the next leases; returns the cursor behind them ("0": that was all) and how many were
-- cleared.
local page = redis.call('HSCAN', LEASES, ARGV[2], 'COUNT', 200)
local cleared = 0
for i = 1, #page[2], 2 do
  local epoch, holder = held(page[2][i])
  if holder and not alive(holder) then
    redis.call('HDEL', LEASES, page[2][i])
    raise_floor(epoch)
    cleared = cleared + 1
  end
end
return { page[1], cleared }
