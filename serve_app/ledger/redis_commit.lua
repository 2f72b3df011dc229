-- Commit the rows of one bucket. Every key carries the bucket as its hash tag, so the call stays on one node.
--
-- KEYS[1]  hc:{bucket}:n, the bucket's write counter; all other keys share its prefix
-- ARGV     seen counter, key lifetime ms, history horizon us, most entries, keep records (1 or 0), then per row:
--          user, read version, decided_at us, entries, record, request, key, digest, outbox, deferred until, settled request
--          (user and request as 8 bytes; "" for what a row leaves out)
-- returns  {counter, {status, version, stored}, ...}; status as CommitStatus
local FIELDS, ENTRY = 11, 56
local COMMITTED, CONFLICT, DUPLICATE, KEY_REUSED, REGRESSED = 0, 1, 2, 3, 4
local prefix = string.sub(KEYS[1], 1, -2)
local seen, key_ms, horizon, most = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local keep_records = ARGV[5] == '1'
local counter = tonumber(redis.call('GET', KEYS[1]) or '0')
local reply = {counter}

-- A counter below what a caller has seen means that a fail-over lost writes: nothing is granted until someone reconciles.
if counter < seen or redis.call('EXISTS', prefix .. 'closed') == 1 then
  redis.call('SET', prefix .. 'closed', tostring(seen))
  for first = 6, #ARGV, FIELDS do
    reply[#reply + 1] = {REGRESSED, tonumber(redis.call('HGET', prefix .. 'u:' .. ARGV[first], 'v') or '0'), ''}
  end
  return reply
end

-- Leading entries older than the horizon or beyond the bound go; `known` is the latest time among them.
local function trimmed(history, known, cutoff)
  local first, count = 1, #history / ENTRY
  while count > 0 do
    local at = struct.unpack('<i8', history, first)
    if at >= cutoff and count <= most then break end
    if not known or at > known then known = at end
    first, count = first + ENTRY, count - 1
  end
  return first > 1 and string.sub(history, first) or history, known
end

-- What `erase` must find: keys of the user that expire by themselves.
local function remember(user, member, score)
  local index = prefix .. 'x:' .. user
  redis.call('ZADD', index, score, member)
  if counter % 16 == 0 then
    redis.call('ZREMRANGEBYSCORE', index, '-inf', score - 2000 * key_ms)
  end
  redis.call('PEXPIRE', index, 2 * key_ms)
end

local function write(first, old)
  local version = tonumber(old[1] or '0') + 1
  local user, at, entries, record, request = ARGV[first], tonumber(ARGV[first + 2]), ARGV[first + 3], ARGV[first + 4], ARGV[first + 5]
  local key, payload, until_at, settled = ARGV[first + 6], ARGV[first + 8], ARGV[first + 9], ARGV[first + 10]
  local row, pair = prefix .. 'u:' .. user, user .. request
  counter = counter + 1
  if #entries > 0 then
    local kept = redis.call('HMGET', row, 'h', 'k')
    local history, known = trimmed((kept[1] or '') .. entries, tonumber(kept[2] or nil), at - horizon)
    redis.call('HSET', row, 'v', version, 'h', history)
    if known then redis.call('HSET', row, 'k', string.format('%.0f', known)) end
  else
    redis.call('HSET', row, 'v', version)
  end
  if old[2] then redis.call('HDEL', row, 'e') end
  if #record > 0 and keep_records then
    redis.call('HSET', prefix .. 'd:' .. user, request, struct.pack('<i8', version) .. record)
    redis.call('ZADD', prefix .. 'p', counter, pair)
  end
  if #key > 0 then
    redis.call('SET', prefix .. 'k:' .. key, ARGV[first + 7] .. record, 'PX', key_ms)
    remember(user, 'k' .. key, at)
  end
  if #payload > 0 then
    local number = string.format('%016d', counter)
    redis.call('HSET', prefix .. 'o', number, pair .. payload)
    redis.call('ZADD', prefix .. 'oz', 0, number)
  end
  if #settled > 0 then
    redis.call('ZREM', prefix .. 'z', user .. settled)
    redis.call('HDEL', prefix .. 'zr', user .. settled)
  end
  if until_at ~= '0' then
    redis.call('ZADD', prefix .. 'z', until_at, pair)
    redis.call('HSET', prefix .. 'zr', pair, record)
  end
end

for first = 6, #ARGV, FIELDS do
  local old = redis.call('HMGET', prefix .. 'u:' .. ARGV[first], 'v', 'e')
  local version = tonumber(old[1] or '0')
  local known = #ARGV[first + 6] > 0 and redis.call('GET', prefix .. 'k:' .. ARGV[first + 6])
  if known and string.sub(known, 1, 16) == ARGV[first + 7] then
    reply[#reply + 1] = {DUPLICATE, version, string.sub(known, 17)}
  elseif known then
    reply[#reply + 1] = {KEY_REUSED, version, ''}
  elseif version ~= tonumber(ARGV[first + 1]) then
    reply[#reply + 1] = {CONFLICT, version, ''}
  else
    write(first, old)
    reply[#reply + 1] = {COMMITTED, version + 1, ''}
  end
end
redis.call('SET', KEYS[1], counter)
reply[1] = counter
return reply
