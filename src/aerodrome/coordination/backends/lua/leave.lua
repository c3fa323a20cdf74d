-- ARGV: offset, incarnation.
bury(ARGV[2])
return 1
