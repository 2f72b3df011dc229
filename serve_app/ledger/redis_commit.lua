-- Commit rows of one shard (on a cluster), or of all shards of a batch (on a single server), all at once.
--
-- KEYS     hc:{shard}:n of each shard, its meta; all other keys of a shard share that prefix
-- ARGV[1]  key lifetime ms    [2] most entries    [3] 1: records are copied by compaction, 0: they stay here only
-- ARGV[4]  per shard 16 bytes: seen counter i8, rows u4, bytes of its records u4
-- ARGV[5]  per row 112 bytes: user 8, request 8, new version 8, where in the shard's records u4, length u4, state u4, spare u4,
--          key 16 | digest 16, read version 8, oldest time kept i8, entries u4, flags u4, deferred until i8, settled request 8
-- ARGV[6]  history entries, in row order    [7] name (8 bytes) of the records, hc:{shard}:b<name>, set before this call
-- ARGV[8]  1: the records are there only for a while unless this call keeps them    [9...] outbox payloads of rows with one
-- returns  {counters i8, statuses u1, versions i8, row, stored record, row, stored record, ...}; rows from 0
--
-- A user's row (hc:{shard}:u<user>) is state 48 | entries 56 each | head 48, so that one write at its end appends and raises
-- the version. head (big-endian): version i8, newest record 8, entries u4, of which dropped u4, time of the first kept (as
-- in its entry), known since i8, erased i8. What is known of a call's records lies in a chunk (hc:{shard}:c<number>): written
-- ms i8, rows u4, spare u4, name of the records 8, and 64 bytes a row: the first 40 above, the user's record before this
-- one (8), key 16. Chunk number (6 bytes) and row in it (2) are a record's place. meta (big-endian): counter, closed (the
-- counter that was missed, or 0), newest chunk, chunks copied, chunks dropped, ms the oldest chunk was written.
--
-- Lua hashes every byte of every string it is given. Hence records pass it by, and there is no more to a row than this.
local COMMITTED, CONFLICT, DUPLICATE, KEY_REUSED, REGRESSED, UNAVAILABLE = '\0', '\1', '\2', '\3', '\4', '\5'
local ROW, KEY, OUTBOX, DEFERRED, SETTLES = 1, 2, 4, 8, 16
local META, WIDE, ENTRY, STATE, MOST_ARGUMENTS = '>i8i8i8i8i8i8', 112, 56, 48, 4000
local ZERO = string.rep('\0', 8)
local NEVER = struct.pack('>i8', -2 ^ 63)
local BLANK, BLANK_HEAD = string.rep('\0', STATE), string.rep('\0', 32) .. NEVER .. ZERO
local call, sub, read, pack, band = redis.call, string.sub, struct.unpack, struct.pack, bit.band
local key_ms, most, copied = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local groups, rows, entries, name, passing = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'
local next_payload = 9
local head_at = setmetatable({}, {__index = function(known, total) -- redis.call is slow to format numbers
  local text = string.format('%d', STATE + total * ENTRY)
  known[total] = text
  return text
end})

-- A slot that is being moved would fail half-way at the first new key: refuse before anything is written.
local probe = redis.pcall('EXISTS', sub(KEYS[1], 1, -2) .. '-')
if type(probe) == 'table' and probe.err then return redis.error_reply('TRYAGAIN the slot is being moved') end

local time = call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local counters, statuses, versions, stored, metas = {}, {}, {}, {}, {}
local found = call('MGET', unpack(KEYS))

-- Leading entries older than `oldest` or beyond the bound go: by count first, in earnest once they are the larger part.
local function trim(key, head, front, added, n, oldest)
  local total, skip = read('>I4I4', head, 17)
  local known = read('>i8', head, 33)
  local all = call('GETRANGE', key, STATE + skip * ENTRY, STATE + total * ENTRY - 1) .. added
  local at, live, first = 1, total + n - skip, ZERO
  while live > 0 do
    local written = read('<i8', all, at)
    if written >= oldest and live <= most then
      first = sub(all, at, at + 7)
      break
    end
    if written > known then known = written end
    at, live, skip = at + ENTRY, live - 1, skip + 1
  end
  local rest = first .. pack('>i8', known) .. ZERO
  if skip > live then
    local state = call('GETRANGE', key, 0, STATE - 1)
    call('SET', key, state .. sub(all, at) .. front .. pack('>I4I4', live, 0) .. rest)
  else
    call('SETRANGE', key, head_at[total], added .. front .. pack('>I4I4', total + n, skip) .. rest)
  end
end

-- Write a user's row: its head behind the `n` entries `added`. `front` is the new version and newest record.
local function write(key, head, front, added, n, oldest)
  if head == '' then
    if n == 0 then
      call('SET', key, BLANK .. front .. sub(BLANK_HEAD, 17))
      return
    end
    head = BLANK_HEAD
    call('SET', key, BLANK .. head)
  end
  local total, skip = read('>I4I4', head, 17)
  if n == 0 then
    call('SETRANGE', key, head_at[total], sub(head, 41) == ZERO and front or front .. sub(head, 17, 40) .. ZERO)
    return
  end
  local first = total == skip and sub(added, 1, 8) or sub(head, 25, 32)
  if read('<i8', first) < oldest or total + n - skip > most then
    trim(key, head, front, added, n, oldest)
  else
    local rest = pack('>I4I4', total + n, skip) .. first .. sub(head, 33, 40) .. ZERO
    call('SETRANGE', key, head_at[total], added .. front .. rest)
  end
end

-- The record at a place; "" when it was dropped or erased.
local function record_at(prefix, place)
  local chunk, number = read('>I6I2', place)
  local own = prefix .. 'c' .. pack('>I8', chunk)
  local head = call('GETRANGE', own, 24 + 64 * number, 87 + 64 * number)
  if #head < 64 then return '' end
  local offset, length, state = read('<I4I4I4', head, 25)
  if state == 2 or length == 0 then return '' end
  return call('GETRANGE', prefix .. 'b' .. call('GETRANGE', own, 16, 23), offset, offset + length - 1)
end

local function in_slices(command, key, arguments)
  for first = 1, #arguments, MOST_ARGUMENTS do
    call(command, key, unpack(arguments, first, math.min(first + MOST_ARGUMENTS - 1, #arguments)))
  end
end

-- Chunks that were copied and have outlived every key that points to them go, some at each call.
local function drop(prefix, copied_to, dropped, written_ms)
  for _ = 1, 4 do
    if dropped >= copied_to or written_ms + key_ms + 60000 > now_ms then break end
    dropped = dropped + 1
    local own = prefix .. 'c' .. pack('>I8', dropped)
    call('UNLINK', own, prefix .. 'b' .. call('GETRANGE', own, 16, 23))
    local following = call('GETRANGE', prefix .. 'c' .. pack('>I8', dropped + 1), 0, 7)
    if #following == 8 then written_ms = read('<i8', following) end
  end
  return dropped, written_ms
end

local row, entry_at = 0, 1
for group = 1, #KEYS do
  local seen, count, bytes = read('<i8I4I4', groups, group * 16 - 15)
  local prefix = sub(KEYS[group], 1, -2)
  local counter, closed, newest, copied_to, dropped, written_ms = 0, 0, 0, 0, 0, 0
  if found[group] then counter, closed, newest, copied_to, dropped, written_ms = read(META, found[group]) end
  -- A counter below what a caller has seen means that a fail-over lost writes: nothing is granted until someone reconciles.
  if counter < seen and closed < seen then closed = seen end
  local refused = closed > 0 and REGRESSED or nil
  local records = prefix .. 'b' .. name
  if bytes > 0 and passing and not refused and call('PERSIST', records) == 0 then refused = UNAVAILABLE end
  local number = newest + 1
  local heads, void = {}, {}
  local settled, due, deferred, outbox, waiting = {}, {}, {}, {}, {}

  for r = row + 1, row + count do
    local user, request, version, where, idem, digest, expected, oldest, n, flags =
      read('<c8c8c8c16c16c16c8i8I4I4', rows, r * WIDE - WIDE + 1)
    local key = prefix .. 'u' .. user
    local head = call('GETRANGE', key, '-48', '-1')
    local current = head == '' and ZERO or sub(head, 1, 8)
    local status = refused or COMMITTED
    if not refused then
      local known = flags % 4 > 1 and call('GET', prefix .. 'k' .. idem)
      if known then
        status = sub(known, 1, 16) == digest and DUPLICATE or KEY_REUSED
        if status == DUPLICATE then
          stored[#stored + 1] = r - 1
          stored[#stored + 1] = record_at(prefix, sub(known, 17))
        end
      elseif current ~= expected then
        status = CONFLICT
      end
    end
    statuses[r] = status
    if status == COMMITTED then
      counter = counter + 1
      versions[r] = version
      local place = head == '' and ZERO or sub(head, 9, 16)
      if flags % 2 == ROW then
        local before = place
        place = pack('>I6I2', number, #heads)
        heads[#heads + 1] = user .. request .. version .. where .. before .. idem
        if flags % 4 > 1 then call('SET', prefix .. 'k' .. idem, digest .. place, 'PX', ARGV[1]) end
      end
      write(key, head, version .. place, n > 0 and sub(entries, entry_at, entry_at + n * ENTRY - 1), n, oldest)
      if flags > 3 then
        local pair = user .. request
        local until_at, settles = read('<i8c8', rows, r * WIDE - 15)
        if band(flags, SETTLES) > 0 then settled[#settled + 1] = user .. settles end
        if band(flags, DEFERRED) > 0 then
          local offset, length = read('<I4I4', where)
          local record = length > 0 and call('GETRANGE', records, offset, offset + length - 1) or ''
          due[#due + 1], due[#due + 2] = until_at, pair
          deferred[#deferred + 1], deferred[#deferred + 2] = pair, record
        end
        if band(flags, OUTBOX) > 0 then
          local title = string.format('%016d', counter)
          outbox[#outbox + 1], outbox[#outbox + 2] = title, pair .. ARGV[next_payload]
          waiting[#waiting + 1], waiting[#waiting + 2] = 0, title
        end
      end
    else
      versions[r] = current
      void[#void + 1] = where
    end
    if band(flags, OUTBOX) > 0 then next_payload = next_payload + 1 end
    entry_at = entry_at + n * ENTRY
  end

  if #heads > 0 then
    call('SET', prefix .. 'c' .. pack('>I8', number), pack('<i8I4I4', now_ms, #heads, 0) .. name .. table.concat(heads))
    if newest == dropped then written_ms = now_ms end
    if not copied and copied_to == newest then copied_to = number end
    newest = number
    for _, where in ipairs(void) do -- a decision that did not come to be leaves nothing behind
      local offset, length = read('<I4I4', where)
      if length > 0 then call('SETRANGE', records, offset, string.rep('\0', length)) end
    end
  elseif bytes > 0 then
    call('UNLINK', records)
  end
  if #settled > 0 then
    in_slices('ZREM', prefix .. 'z', settled)
    in_slices('HDEL', prefix .. 'y', settled)
  end
  if #due > 0 then
    in_slices('ZADD', prefix .. 'z', due)
    in_slices('HSET', prefix .. 'y', deferred)
  end
  if #outbox > 0 then
    in_slices('HSET', prefix .. 'o', outbox)
    in_slices('ZADD', prefix .. 'p', waiting)
  end
  if dropped < copied_to then dropped, written_ms = drop(prefix, copied_to, dropped, written_ms) end
  metas[group * 2 - 1] = KEYS[group]
  metas[group * 2] = pack(META, counter, closed, newest, copied_to, dropped, written_ms)
  counters[group] = pack('<i8', counter)
  row = row + count
end

call('MSET', unpack(metas))
local reply = {table.concat(counters), table.concat(statuses), table.concat(versions)}
for i = 1, #stored do reply[i + 3] = stored[i] end
return reply
