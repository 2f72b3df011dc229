-- Look at one user. Layouts: redis_commit.lua.
--
-- KEYS[1]  hc:{shard}:n    ARGV  user (8 bytes), then
--   "state"             -> {row, {z, r, a, n, i of hc:{shard}:w<user>}}
--   "record" request    -> the decision record, or nil
local call, sub, read, pack = redis.call, string.sub, struct.unpack, struct.pack
local prefix, user, what, request = sub(KEYS[1], 1, -2), ARGV[1], ARGV[2], ARGV[3]
if what == 'state' then
  return {call('GET', prefix .. 'u' .. user), call('HMGET', prefix .. 'w' .. user, 'z', 'r', 'a', 'n', 'i')}
end
local place = call('GETRANGE', prefix .. 'u' .. user, -40, -33)
while #place == 8 and place ~= string.rep('\0', 8) do
  local chunk, number = read('>I6I2', place)
  local name = prefix .. 'c' .. pack('>I8', chunk)
  local head = call('GETRANGE', name, 24 + 64 * number, 87 + 64 * number)
  if #head < 64 or sub(head, 1, 8) ~= user then return false end -- dropped, with all before it
  if sub(head, 9, 16) == request then
    local offset, length = read('<I4I4', head, 25)
    if length == 0 then return false end
    return call('GETRANGE', prefix .. 'b' .. call('GETRANGE', name, 16, 23), offset, offset + length - 1)
  end
  place = sub(head, 41, 48)
end
return false
