-- ARGV: offset, cursor. Looks at the next places; returns the cursor behind them ("0": that was all) and how many were
-- cleared.
local page = redis.call('HSCAN', PLACES, ARGV[2], 'COUNT', 200)
local cleared = 0
for i = 1, #page[2], 2 do
  if not alive(cjson.decode(page[2][i + 1]).whose) then
    give_back(page[2][i], function(whose) return not alive(whose) end)
    cleared = cleared + 1
  end
end
return { page[1], cleared }
