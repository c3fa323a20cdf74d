-- ARGV: offset, place, incarnation.
give_back(ARGV[2], function(whose) return whose == ARGV[3] end)
return 1
