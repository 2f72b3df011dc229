-- Compare-and-set parts of users' rows and their names and proofs, as redis_commit.lua lays them out.
--
-- KEYS     hc:{shard}:n of each shard    ARGV[1]  per shard 16 bytes: seen counter i8, rows u4, spare u4
-- ARGV[2]  per row 40 bytes: user 8, read version 8, new version 8, place u4 and length u4 of its bytes, fields u4, spare u4
-- ARGV[3]  the bytes to lay into each row at its place, in row order
-- ARGV[4...]  per row `fields` times field, value of hc:{shard}:w<user>; "" removes the field
-- returns  {counters i8, statuses u1, versions i8}
local COMMITTED, CONFLICT, REGRESSED = '\0', '\1', '\4'
local META, STATE = '>i8i8i8i8i8i8', 48
local ZERO = string.rep('\0', 8)
local BLANK, BLANK_HEAD = string.rep('\0', STATE), string.rep('\0', 32) .. struct.pack('>i8', -2 ^ 63) .. ZERO
local call, sub, read, pack = redis.call, string.sub, struct.unpack, struct.pack
local groups, rows, bytes = ARGV[1], ARGV[2], ARGV[3]

local probe = redis.pcall('EXISTS', sub(KEYS[1], 1, -2) .. '-')
if type(probe) == 'table' and probe.err then return redis.error_reply('TRYAGAIN the slot is being moved') end

local counters, statuses, versions, metas = {}, {}, {}, {}
local found = call('MGET', unpack(KEYS))
local row, byte_at, field_at = 0, 1, 4
for group = 1, #KEYS do
  local seen, count = read('<i8I4', groups, group * 16 - 15)
  local prefix = sub(KEYS[group], 1, -2)
  local counter, closed, newest, copied_to, dropped, written_ms = 0, 0, 0, 0, 0, 0
  if found[group] then counter, closed, newest, copied_to, dropped, written_ms = read(META, found[group]) end
  if counter < seen and closed < seen then closed = seen end
  for r = row + 1, row + count do
    local user, expected, version, place, length, fields = read('<c8c8c8I4I4I4', rows, (r - 1) * 40 + 1)
    local key, person = prefix .. 'u' .. user, prefix .. 'w' .. user
    local head = call('GETRANGE', key, '-48', '-1')
    local current = head == '' and ZERO or sub(head, 1, 8)
    if closed > 0 or current ~= expected then
      statuses[r], versions[r] = closed > 0 and REGRESSED or CONFLICT, current
    else
      statuses[r], versions[r] = COMMITTED, version
      counter = counter + 1
      if head == '' then
        head = BLANK_HEAD
        call('SET', key, BLANK .. head)
      end
      if length > 0 then call('SETRANGE', key, place, sub(bytes, byte_at, byte_at + length - 1)) end
      call('SETRANGE', key, STATE + 56 * read('>I4', head, 17), version .. sub(head, 9, 40) .. ZERO)
      for i = field_at, field_at + 2 * fields - 1, 2 do
        if ARGV[i + 1] == '' then
          call('HDEL', person, ARGV[i])
        else
          call('HSET', person, ARGV[i], ARGV[i + 1])
        end
      end
    end
    byte_at, field_at = byte_at + length, field_at + 2 * fields
  end
  row = row + count
  metas[group * 2 - 1] = KEYS[group]
  metas[group * 2] = pack(META, counter, closed, newest, copied_to, dropped, written_ms)
  counters[group] = pack('<i8', counter)
end
call('MSET', unpack(metas))
return {table.concat(counters), table.concat(statuses), table.concat(versions)}
