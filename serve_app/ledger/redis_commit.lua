-- Commit rows of one shard (on a cluster), or of all shards of a batch (on a single server), all at once.
--
-- KEYS     hc:{shard}:n of each shard, its meta; all other keys of a shard share that prefix
-- ARGV[1]  key lifetime ms    [2] most entries    [3] 1: records are copied by compaction, 0: they stay here only
-- ARGV[4]  per shard 16 bytes: seen counter i8, rows u4, bytes of records u4
-- ARGV[5]  per row 112 bytes: user 8, request 8, new version 8, record offset u4 and length u4, state u4, spare u4, key 16,
--          digest 16 | read version 8, oldest time kept i8, entries u4, flags u4, deferred until i8, settled request 8
-- ARGV[6]  history entries    [7] records, both in row order    [8...] outbox payloads of the rows that have one
-- returns  {counters i8, statuses u1, versions i8, row, stored record, row, stored record, ...}; rows from 0
--
-- A user's row (hc:{shard}:u<user>) is state 48 | entries 56 each | head 48, so that one write at its end appends and raises
-- the version. head: version i8, newest record 8, entries u4, of which dropped u4, time of the first kept i8, known since
-- i8, erased i8. A record lies in a chunk (hc:{shard}:c<number>): written ms i8, rows u4, spare u4, per row the first 72
-- bytes of the row above and the user's record before it (8), then the records. Chunk number (5 bytes) and row in it (3)
-- name a record. meta: counter, closed (the counter that was missed, or 0), newest chunk, chunks copied, chunks dropped,
-- ms the oldest chunk was written.
local COMMITTED, CONFLICT, DUPLICATE, KEY_REUSED, REGRESSED = '\0', '\1', '\2', '\3', '\4'
local ROW, KEY, OUTBOX, DEFERRED, SETTLES = 1, 2, 4, 8, 16
local META, WIDE, ENTRY, STATE, HEAD, MOST_ARGUMENTS = '<i8i8i8i8i8i8', 112, 56, 48, 48, 4000
local ZERO = string.rep('\0', 8)
local NEVER = struct.pack('<i8', -2 ^ 63)
local BLANK, BLANK_HEAD = string.rep('\0', STATE), string.rep('\0', 32) .. NEVER .. ZERO
local call, sub, read, pack, band = redis.call, string.sub, struct.unpack, struct.pack, bit.band
local key_ms, most, copied = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local groups, rows, entries, records = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local next_payload = 8

-- A slot that is being moved would fail half-way at the first new key: refuse before anything is written.
local probe = redis.pcall('EXISTS', sub(KEYS[1], 1, -2) .. '-')
if type(probe) == 'table' and probe.err then return redis.error_reply('TRYAGAIN the slot is being moved') end

local time = call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local counters, statuses, versions, stored, metas = {}, {}, {}, {}, {}
local found = call('MGET', unpack(KEYS))

-- Leading entries older than `oldest` or beyond the bound go: by count first, in earnest once they are the larger part.
local function trim(key, head, front, added, n, oldest)
  local total, skip = read('<I4I4', head, 17)
  local known = read('<i8', head, 33)
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
  local rest = first .. pack('<i8', known) .. ZERO
  if skip > live then
    local state = call('GETRANGE', key, 0, STATE - 1)
    call('SET', key, state .. sub(all, at) .. front .. pack('<I4I4', live, 0) .. rest)
  else
    call('SETRANGE', key, STATE + total * ENTRY, added .. front .. pack('<I4I4', total + n, skip) .. rest)
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
  local total, skip = read('<I4I4', head, 17)
  if n == 0 then
    call('SETRANGE', key, STATE + total * ENTRY, front .. sub(head, 17, 40) .. ZERO)
    return
  end
  local first = total == skip and sub(added, 1, 8) or sub(head, 25, 32)
  if read('<i8', first) < oldest or total + n - skip > most then
    trim(key, head, front, added, n, oldest)
  else
    local rest = pack('<I4I4', total + n, skip) .. first .. sub(head, 33, 40) .. ZERO
    call('SETRANGE', key, STATE + total * ENTRY, added .. front .. rest)
  end
end

-- The record a key's value (digest, place) points to; "" when it was dropped or erased.
local function record_at(prefix, place)
  local chunk, row = read('<I5I3', place)
  local name = prefix .. 'c' .. pack('>I8', chunk)
  local head = call('GETRANGE', name, 16 + 80 * row, 95 + 80 * row)
  if #head < 80 then return '' end
  local offset, length, state = read('<I4I4I4', head, 25)
  if state == 2 or length == 0 then return '' end
  local first = 16 + 80 * read('<I4', call('GETRANGE', name, 8, 11)) + offset
  return call('GETRANGE', name, first, first + length - 1)
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
    call('UNLINK', prefix .. 'c' .. pack('>I8', dropped))
    local following = call('GETRANGE', prefix .. 'c' .. pack('>I8', dropped + 1), 0, 7)
    if #following == 8 then written_ms = read('<i8', following) end
  end
  return dropped, written_ms
end

local row, entry_at, record_at_start = 0, 1, 1
for group = 1, #KEYS do
  local seen, count, bytes = read('<i8I4I4', groups, group * 16 - 15)
  local prefix = sub(KEYS[group], 1, -2)
  local counter, closed, newest, copied_to, dropped, written_ms = 0, 0, 0, 0, 0, 0
  if found[group] then counter, closed, newest, copied_to, dropped, written_ms = read(META, found[group]) end
  -- A counter below what a caller has seen means that a fail-over lost writes: nothing is granted until someone reconciles.
  if counter < seen and closed < seen then closed = seen end
  local number = newest + 1
  local heads, pieces, from, lost = {}, {}, record_at_start, 0
  local settled, due, deferred, outbox, waiting = {}, {}, {}, {}, {}

  for r = row + 1, row + count do
    local at = (r - 1) * WIDE + 1
    local user, request, version, rest, expected, oldest, n, flags = read('<c8c8c8c48c8i8I4I4', rows, at)
    local key = prefix .. 'u' .. user
    local head = call('GETRANGE', key, -HEAD, -1)
    local current = head == '' and ZERO or sub(head, 1, 8)
    local status, known = COMMITTED, false
    if closed > 0 then
      status = REGRESSED
    else
      if band(flags, KEY) > 0 then known = call('GET', prefix .. 'k' .. sub(rest, 17, 32)) end
      if known then
        status = sub(known, 1, 16) == sub(rest, 33, 48) and DUPLICATE or KEY_REUSED
        if status == DUPLICATE then
          stored[#stored + 1] = r - 1
          stored[#stored + 1] = record_at(prefix, sub(known, 17))
        end
      elseif current ~= expected then
        status = CONFLICT
      end
    end
    statuses[r] = status
    local kept = false
    if status == COMMITTED then
      counter = counter + 1
      versions[r] = version
      local place = head == '' and ZERO or sub(head, 9, 16)
      if band(flags, ROW) > 0 then
        kept = true
        local own = rest
        if lost > 0 then own = pack('<I4', read('<I4', rest) - lost) .. sub(rest, 5) end
        local before = place
        place = pack('<I5I3', number, #heads)
        heads[#heads + 1] = user .. request .. version .. own .. before
        if band(flags, KEY) > 0 then
          call('SET', prefix .. 'k' .. sub(rest, 17, 32), sub(rest, 33, 48) .. place, 'PX', key_ms)
        end
      end
      write(key, head, version .. place, sub(entries, entry_at, entry_at + n * ENTRY - 1), n, oldest)
      if flags > 3 then
        local pair = user .. request
        local until_at, settles = read('<i8c8', rows, at + 96)
        if band(flags, SETTLES) > 0 then settled[#settled + 1] = user .. settles end
        if band(flags, DEFERRED) > 0 then
          local offset, length = read('<I4I4', rest)
          local first = record_at_start + offset
          due[#due + 1], due[#due + 2] = until_at, pair
          deferred[#deferred + 1], deferred[#deferred + 2] = pair, sub(records, first, first + length - 1)
        end
        if band(flags, OUTBOX) > 0 then
          local name = string.format('%016d', counter)
          outbox[#outbox + 1], outbox[#outbox + 2] = name, pair .. ARGV[next_payload]
          waiting[#waiting + 1], waiting[#waiting + 2] = 0, name
        end
      end
    else
      versions[r] = current
    end
    if not kept then -- its record does not belong into the chunk: cut it out
      local offset, length = read('<I4I4', rest)
      if length > 0 then
        local first = record_at_start + offset
        if first > from then pieces[#pieces + 1] = sub(records, from, first - 1) end
        from, lost = first + length, lost + length
      end
    end
    if band(flags, OUTBOX) > 0 then next_payload = next_payload + 1 end
    entry_at = entry_at + n * ENTRY
  end

  if #heads > 0 then
    local last = record_at_start + bytes - 1
    if last >= from then pieces[#pieces + 1] = sub(records, from, last) end
    local name = prefix .. 'c' .. pack('>I8', number)
    call('SET', name, pack('<i8I4I4', now_ms, #heads, 0) .. table.concat(heads) .. table.concat(pieces))
    if newest == dropped then written_ms = now_ms end
    if not copied and copied_to == newest then copied_to = number end
    newest = number
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
  row, record_at_start = row + count, record_at_start + bytes
end

call('MSET', unpack(metas))
local reply = {table.concat(counters), table.concat(statuses), table.concat(versions)}
for i = 1, #stored do reply[i + 3] = stored[i] end
return reply
