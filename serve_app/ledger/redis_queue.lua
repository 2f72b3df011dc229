-- The queues of one bucket: decision records to copy, outbox rows, deferrals.
--
-- KEYS[1]  hc:{bucket}:n    ARGV[1]  what to do:
--   records limit                  -> {{number, user .. request, version .. record}, ...}
--   ack_records lifetime_ms n...   -> 0; acknowledged records live on under keys that expire
--   claim now limit lease_until    -> {{number, user .. request .. payload, attempts}, ...}
--   ack_outbox n...                -> how many there were
--   postpone {n until attempts}... -> how many there were
--   buried until limit             -> like claim, of those put off until exactly then
--   due now limit                  -> {{until, user .. request, record}, ...}
--   drop pair                      -> 1 or 0
local prefix = string.sub(KEYS[1], 1, -2)
local what = ARGV[1]
local out = {}

if what == 'records' then
  local members = redis.call('ZRANGE', prefix .. 'p', 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
  for i = 1, #members, 2 do
    local record = redis.call('HGET', prefix .. 'd:' .. string.sub(members[i], 1, 8), string.sub(members[i], 9))
    out[#out + 1] = {tonumber(members[i + 1]), members[i], record}
  end
  return out
elseif what == 'ack_records' then
  local now = tonumber(redis.call('TIME')[1]) * 1000000
  for i = 3, #ARGV do
    for _, member in ipairs(redis.call('ZRANGE', prefix .. 'p', ARGV[i], ARGV[i], 'BYSCORE')) do
      local user, request = string.sub(member, 1, 8), string.sub(member, 9)
      local record = redis.call('HGET', prefix .. 'd:' .. user, request)
      redis.call('SET', prefix .. 'a:' .. member, record, 'PX', ARGV[2])
      redis.call('ZADD', prefix .. 'x:' .. user, now, 'a' .. request)
      redis.call('ZREMRANGEBYSCORE', prefix .. 'x:' .. user, '-inf', now - 2000 * ARGV[2])
      redis.call('PEXPIRE', prefix .. 'x:' .. user, 2 * ARGV[2])
      redis.call('HDEL', prefix .. 'd:' .. user, request)
      redis.call('ZREM', prefix .. 'p', member)
    end
  end
  return 0
elseif what == 'claim' then
  for _, number in ipairs(redis.call('ZRANGE', prefix .. 'oz', '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
    redis.call('ZADD', prefix .. 'oz', ARGV[4], number)
    local attempts = redis.call('HINCRBY', prefix .. 'oa', number, 1)
    out[#out + 1] = {tonumber(number), redis.call('HGET', prefix .. 'o', number), attempts}
  end
  return out
elseif what == 'ack_outbox' then
  local count = 0
  for i = 2, #ARGV do
    local number = string.format('%016d', tonumber(ARGV[i]))
    count = count + redis.call('HDEL', prefix .. 'o', number)
    redis.call('HDEL', prefix .. 'oa', number)
    redis.call('ZREM', prefix .. 'oz', number)
  end
  return count
elseif what == 'postpone' then
  local count = 0
  for i = 2, #ARGV, 3 do
    local number = string.format('%016d', tonumber(ARGV[i]))
    if redis.call('HEXISTS', prefix .. 'o', number) == 1 then
      redis.call('ZADD', prefix .. 'oz', ARGV[i + 1], number)
      redis.call('HSET', prefix .. 'oa', number, ARGV[i + 2])
      count = count + 1
    end
  end
  return count
elseif what == 'buried' then
  for _, number in ipairs(redis.call('ZRANGE', prefix .. 'oz', ARGV[2], ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
    local attempts = tonumber(redis.call('HGET', prefix .. 'oa', number) or '0')
    out[#out + 1] = {tonumber(number), redis.call('HGET', prefix .. 'o', number), attempts}
  end
  return out
elseif what == 'due' then
  local members = redis.call('ZRANGE', prefix .. 'z', '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[3], 'WITHSCORES')
  for i = 1, #members, 2 do
    out[#out + 1] = {tonumber(members[i + 1]), members[i], redis.call('HGET', prefix .. 'zr', members[i]) or ''}
  end
  return out
elseif what == 'drop' then
  redis.call('HDEL', prefix .. 'zr', ARGV[2])
  return redis.call('ZREM', prefix .. 'z', ARGV[2])
end
return redis.error_reply('ERR unknown queue operation ' .. tostring(what))
