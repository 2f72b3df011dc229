-- Store a campaign's next version as a change in the catalogue log.
--
-- KEYS[1]  hc:{catalogue}:log    KEYS[2]  hc:{catalogue}:campaigns    ARGV  campaign id, document, change for the log
-- returns  {version, seq}
local known = redis.call('HGET', KEYS[2], ARGV[1])
local version = known and struct.unpack('<i8', known) + 1 or 1
local seq = redis.call('RPUSH', KEYS[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], struct.pack('<i8i8', version, seq) .. ARGV[2])
return {version, seq}
