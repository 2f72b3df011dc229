-- The queues of one shard: decision records to copy, outbox rows, deferrals. Layouts: redis_commit.lua.
--
-- KEYS[1]  hc:{shard}:n    ARGV[1]  what to do:
--   ack_records {chunk row}...     -> 0; acknowledged records live on until no key points to them
--   claim now limit lease_until    -> {{number, user .. request .. payload, attempts}, ...}
--   ack_outbox n...                -> how many there were
--   postpone {n until attempts}... -> how many there were
--   buried until limit             -> like claim, of those put off until exactly then
--   drop pair                      -> 1 or 0
--   reopen seen                    -> counter, after a fail-over was reconciled
local META = '>i8i8i8i8i8i8'
local call, sub, read, pack = redis.call, string.sub, struct.unpack, struct.pack
local prefix, what, out = sub(KEYS[1], 1, -2), ARGV[1], {}

local probe = redis.pcall('EXISTS', prefix .. '-')
if type(probe) == 'table' and probe.err then return redis.error_reply('TRYAGAIN the slot is being moved') end

local function chunk_name(number) return prefix .. 'c' .. pack('>I8', number) end

local function rows_of(chunk)
  local count = call('GETRANGE', chunk_name(chunk), 8, 11)
  return #count == 4 and read('<I4', count) or 0
end

-- Nothing in it waits: every row was copied or erased, or a fail-over lost it.
local function done(chunk)
  local count = rows_of(chunk)
  local heads = call('GETRANGE', chunk_name(chunk), 24, 23 + 64 * count)
  for row = 0, count - 1 do
    if read('<I4', heads, 64 * row + 33) == 0 then return false end
  end
  return true
end

if what == 'ack_records' then
  local meta = call('GET', KEYS[1])
  if not meta then return 0 end
  local counter, closed, newest, copied_to, dropped, written_ms = read(META, meta)
  local marked, order = {}, {}
  for i = 2, #ARGV, 2 do
    local chunk, row = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
    if chunk > copied_to and chunk <= newest then
      if not marked[chunk] then
        marked[chunk] = {}
        order[#order + 1] = chunk
      end
      table.insert(marked[chunk], row)
    end
  end
  table.sort(order)
  for _, chunk in ipairs(order) do
    local count = rows_of(chunk)
    if chunk == copied_to + 1 and #marked[chunk] == count then
      copied_to = chunk -- the usual case: a whole chunk, in order
    else
      for _, row in ipairs(marked[chunk]) do
        local at = 24 + 64 * row + 32
        if row < count and call('GETRANGE', chunk_name(chunk), at, at) == '\0' then
          call('SETRANGE', chunk_name(chunk), at, '\1')
        end
      end
    end
  end
  while copied_to < newest and done(copied_to + 1) do copied_to = copied_to + 1 end
  call('SET', KEYS[1], pack(META, counter, closed, newest, copied_to, dropped, written_ms))
  return 0
elseif what == 'claim' then
  for _, number in ipairs(call('ZRANGE', prefix .. 'p', '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
    call('ZADD', prefix .. 'p', ARGV[4], number)
    local attempts = call('HINCRBY', prefix .. 'a', number, 1)
    out[#out + 1] = {tonumber(number), call('HGET', prefix .. 'o', number), attempts}
  end
  return out
elseif what == 'ack_outbox' then
  local count = 0
  for i = 2, #ARGV do
    local number = string.format('%016d', tonumber(ARGV[i]))
    count = count + call('HDEL', prefix .. 'o', number)
    call('HDEL', prefix .. 'a', number)
    call('ZREM', prefix .. 'p', number)
  end
  return count
elseif what == 'postpone' then
  local count = 0
  for i = 2, #ARGV, 3 do
    local number = string.format('%016d', tonumber(ARGV[i]))
    if call('HEXISTS', prefix .. 'o', number) == 1 then
      call('ZADD', prefix .. 'p', ARGV[i + 1], number)
      call('HSET', prefix .. 'a', number, ARGV[i + 2])
      count = count + 1
    end
  end
  return count
elseif what == 'buried' then
  for _, number in ipairs(call('ZRANGE', prefix .. 'p', ARGV[2], ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
    local attempts = tonumber(call('HGET', prefix .. 'a', number) or '0')
    out[#out + 1] = {tonumber(number), call('HGET', prefix .. 'o', number), attempts}
  end
  return out
elseif what == 'drop' then
  call('HDEL', prefix .. 'y', ARGV[2])
  return call('ZREM', prefix .. 'z', ARGV[2])
elseif what == 'reopen' then
  -- Above all that any process has seen, chunk numbers too: nobody's late acknowledgement may hit a new record.
  local counter, closed, newest, copied_to, dropped, written_ms = 0, 0, 0, 0, 0, 0
  local meta = call('GET', KEYS[1])
  if meta then counter, closed, newest, copied_to, dropped, written_ms = read(META, meta) end
  local top = math.max(counter, closed, tonumber(ARGV[2])) + 1
  call('SET', KEYS[1], pack(META, top, 0, newest + top - counter, copied_to, dropped, written_ms))
  return top
end
return redis.error_reply('ERR unknown queue operation ' .. tostring(what))
