-- Erase everything of one user but the version, which rises by one.
--
-- KEYS[1]  hc:{bucket}:n    ARGV  user (8 bytes)
-- returns  1, or 0 when nothing was known
local prefix = string.sub(KEYS[1], 1, -2)
local user = ARGV[1]
local row = prefix .. 'u:' .. user
local known = redis.call('HMGET', row, 'v', 'e')
local recents = redis.call('DEL', prefix .. 's:' .. user)
if (not known[1] or known[2]) and recents == 0 then return 0 end
local version = tonumber(known[1] or '0') + 1
redis.call('DEL', row)
redis.call('HSET', row, 'v', version, 'e', '1')

for _, member in ipairs(redis.call('ZRANGE', prefix .. 'x:' .. user, 0, -1)) do
  local name = string.sub(member, 2)
  redis.call('DEL', string.sub(member, 1, 1) == 'k' and prefix .. 'k:' .. name or prefix .. 'a:' .. user .. name)
end
redis.call('DEL', prefix .. 'x:' .. user)
for _, request in ipairs(redis.call('HKEYS', prefix .. 'd:' .. user)) do
  redis.call('ZREM', prefix .. 'p', user .. request)
end
redis.call('DEL', prefix .. 'd:' .. user)
for _, pair in ipairs(redis.call('ZRANGE', prefix .. 'z', 0, -1)) do
  if string.sub(pair, 1, 8) == user then
    redis.call('ZREM', prefix .. 'z', pair)
    redis.call('HDEL', prefix .. 'zr', pair)
  end
end
for _, number in ipairs(redis.call('HKEYS', prefix .. 'o')) do
  if string.sub(redis.call('HGET', prefix .. 'o', number), 1, 8) == user then
    redis.call('HDEL', prefix .. 'o', number)
    redis.call('HDEL', prefix .. 'oa', number)
    redis.call('ZREM', prefix .. 'oz', number)
  end
end
redis.call('INCR', KEYS[1])
return 1
