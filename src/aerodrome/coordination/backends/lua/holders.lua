-- ARGV: offset, session... Returns session, incarnation, epoch of each that a living node holds.
local found = {}
for i = 2, #ARGV do
  local epoch, holder = held(ARGV[i])
  if holder and alive(holder) then
    found[#found + 1] = { ARGV[i], holder, whole(epoch) }
  end
end
return found
