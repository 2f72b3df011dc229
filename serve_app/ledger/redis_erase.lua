-- Erase everything of one user but the version, which rises by one. Layouts: redis_commit.lua.
--
-- KEYS[1]  hc:{shard}:n    ARGV  user (8 bytes)
-- returns  1, or 0 when nothing was known
local META, STATE = '>i8i8i8i8i8i8', 48
local ZERO = string.rep('\0', 8)
local NEVER, ONE = struct.pack('>i8', -2 ^ 63), struct.pack('>i8', 1)
local call, sub, read, pack = redis.call, string.sub, struct.unpack, struct.pack
local prefix, user = sub(KEYS[1], 1, -2), ARGV[1]
local row = prefix .. 'u' .. user

local probe = redis.pcall('EXISTS', prefix .. '-')
if type(probe) == 'table' and probe.err then return redis.error_reply('TRYAGAIN the slot is being moved') end

local head = call('GETRANGE', row, -48, -1)
local recents = call('DEL', prefix .. 's' .. user)
if (head == '' or sub(head, 41, 48) ~= ZERO) and recents == 0 then return 0 end
if head == '' then head = string.rep('\0', 48) end

-- Records, newest first, and the idempotency keys that point to them.
local place = sub(head, 9, 16)
while place ~= ZERO do
  local chunk, number = read('>I6I2', place)
  local name = prefix .. 'c' .. pack('>I8', chunk)
  local at = 24 + 64 * number
  local own = call('GETRANGE', name, at, at + 63)
  if #own < 64 or sub(own, 1, 8) ~= user then break end -- dropped, with all before it
  local offset, length = read('<I4I4', own, 25)
  local key = prefix .. 'k' .. sub(own, 49, 64)
  local known = call('GET', key)
  if known and sub(known, 17) == place then call('DEL', key) end
  local records = prefix .. 'b' .. call('GETRANGE', name, 16, 23)
  if length > 0 then call('SETRANGE', records, offset, string.rep('\0', length)) end
  call('SETRANGE', name, at, string.rep('\0', 24) .. pack('<I4I4I4', offset, length, 2) .. string.rep('\0', 28))
  place = sub(own, 41, 48)
end

for _, pair in ipairs(call('ZRANGE', prefix .. 'z', 0, -1)) do
  if sub(pair, 1, 8) == user then
    call('ZREM', prefix .. 'z', pair)
    call('HDEL', prefix .. 'y', pair)
  end
end
for _, number in ipairs(call('HKEYS', prefix .. 'o')) do
  if sub(call('HGET', prefix .. 'o', number), 1, 8) == user then
    call('HDEL', prefix .. 'o', number)
    call('HDEL', prefix .. 'a', number)
    call('ZREM', prefix .. 'p', number)
  end
end
call('DEL', prefix .. 'w' .. user)
local version = pack('>i8', read('>i8', head) + 1)
call('SET', row, string.rep('\0', STATE) .. version .. ZERO .. ZERO .. ZERO .. NEVER .. ONE)
local meta = call('GET', KEYS[1])
local counter, closed, newest, copied_to, dropped, written_ms = 0, 0, 0, 0, 0, 0
if meta then counter, closed, newest, copied_to, dropped, written_ms = read(META, meta) end
call('SET', KEYS[1], pack(META, counter + 1, closed, newest, copied_to, dropped, written_ms))
return 1
