-- Compare-and-set fields of one user's row.
--
-- KEYS[1]  hc:{bucket}:n    ARGV  seen counter, user (8 bytes), read version, field, value, field, value, ...
-- returns  {counter, status, version}; a value of "" removes the field
local COMMITTED, CONFLICT, REGRESSED = 0, 1, 4
local prefix = string.sub(KEYS[1], 1, -2)
local row = prefix .. 'u:' .. ARGV[2]
local counter = tonumber(redis.call('GET', KEYS[1]) or '0')
local version = tonumber(redis.call('HGET', row, 'v') or '0')
if counter < tonumber(ARGV[1]) or redis.call('EXISTS', prefix .. 'closed') == 1 then
  redis.call('SET', prefix .. 'closed', ARGV[1])
  return {counter, REGRESSED, version}
end
if version ~= tonumber(ARGV[3]) then return {counter, CONFLICT, version} end
for field = 4, #ARGV, 2 do
  if #ARGV[field + 1] > 0 then
    redis.call('HSET', row, ARGV[field], ARGV[field + 1])
  else
    redis.call('HDEL', row, ARGV[field])
  end
end
redis.call('HSET', row, 'v', version + 1)
redis.call('HDEL', row, 'e')
return {redis.call('INCR', KEYS[1]), COMMITTED, version + 1}
