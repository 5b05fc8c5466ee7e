"""What a Redis server does in one step: each is a script, which runs as a whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_LOOK = """
local time = redis.call('TIME')
return {redis.call('HGET', KEYS[1], ARGV[1]), time[1], time[2]}
"""
# Compare and set in one step: if the document is not what the change started from, return what it is now.
_SWAP = """
local there = redis.call('HGET', KEYS[1], ARGV[1])
local expected = ARGV[2] == '1' and ARGV[3] or false
if there ~= expected then
  local time = redis.call('TIME')
  return {there, time[1], time[2]}
end
if ARGV[4] == '1' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[5]) else redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
"""
_READ = """
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, #ARGV[1]) == ARGV[1] then
    found[#found + 1] = all[i]
    found[#found + 1] = all[i + 1]
  end
end
return found
"""
# How both read values: as many as can be sent at once, after the server's time.
_VALUES = """
local function values(first, most)
  local time, found, size = redis.call('TIME'), {}, 0
  for i = first, #KEYS do
    if size > tonumber(most) then break end
    local value = redis.call('GET', KEYS[i])
    found[#found + 1] = value
    if value then size = size + #value end
  end
  return {time[1], time[2], found}
end
"""
_FETCH = f"{_VALUES} return values(1, ARGV[1])"
_PUT = """
for i = 1, #KEYS do
  if ARGV[2 * i] == '0' then redis.call('DEL', KEYS[i])
  else redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i]) end
end
"""
# The first key has the highest number that the process has written; each record is (its number, its log, its bytes).
_APPEND = """
local count, written = tonumber(ARGV[1]), tonumber(redis.call('GET', KEYS[1]) or '0')
local last = written
for i = 1, count do
  local number = tonumber(ARGV[3 * i])
  if number == 0 or number > written then
    redis.call('RPUSH', KEYS[tonumber(ARGV[3 * i + 1])], ARGV[3 * i + 2])
    last = math.max(last, number)
  end
end
for i = 2, #KEYS do
  local keep = tonumber(ARGV[3 * count + 1 + i])
  if keep > 0 then redis.call('LTRIM', KEYS[i], -keep, -1) else redis.call('DEL', KEYS[i]) end
end
if last > written then redis.call('SET', KEYS[1], last, 'PX', ARGV[2]) end
"""
# The keys are the leases to take, those to give back, and values to read then.
_EXCHANGE = """
local dead, held, taken, leases = {}, {}, tonumber(ARGV[3]), tonumber(ARGV[4])
for i = 6, #ARGV do dead[ARGV[i]] = true end
for i = 1, taken do
  local holder = redis.call('GET', KEYS[i])
  if holder and holder ~= ARGV[1] and not dead[holder] then
    held[#held + 1] = i
    held[#held + 1] = holder
  else
    redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
  end
end
for i = taken + 1, leases do
  if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('DEL', KEYS[i]) end
end
return {held, values(leases + 1, ARGV[5])}
"""
# A name's blocks are the fields of a hash, by day; as many names as can be sent at once.
_BLOCKS = """
local found, size = {}, 0
for i = 1, #KEYS do
  if size > tonumber(ARGV[1]) then break end
  local days, blocks = {}, {}
  for _, day in ipairs(redis.call('HKEYS', KEYS[i])) do
    if tonumber(day) >= tonumber(ARGV[2]) then days[#days + 1] = tonumber(day) end
  end
  table.sort(days, function(one, other) return one > other end)
  for j = 1, math.min(#days, tonumber(ARGV[3])) do
    local data = redis.call('HGET', KEYS[i], tostring(days[j]))
    blocks[#blocks + 1] = days[j]
    blocks[#blocks + 1] = data
    size = size + #data
  end
  found[#found + 1] = blocks
end
return found
"""
# The first key is the log. Nothing but this takes records from its beginning, besides the bound on their number: if the
# first and the last of them are where they were, so are all between.
_FOLD = """
local count, since = tonumber(ARGV[1]), tonumber(ARGV[4])
local first, last = redis.call('LINDEX', KEYS[1], 0), redis.call('LINDEX', KEYS[1], count - 1)
if not first or redis.sha1hex(first) ~= ARGV[2] or not last or redis.sha1hex(last) ~= ARGV[3] then return 0 end
redis.call('LTRIM', KEYS[1], count, -1)
for i = 7, #ARGV, 3 do redis.call('HSET', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]) end
for i = 2, #KEYS do
  local days, size = {}, 0
  for _, day in ipairs(redis.call('HKEYS', KEYS[i])) do days[#days + 1] = tonumber(day) end
  table.sort(days, function(one, other) return one > other end)
  for j = 1, #days do
    size = size + redis.call('HSTRLEN', KEYS[i], tostring(days[j]))
    if days[j] < since or (j > 1 and size > tonumber(ARGV[6])) then
      redis.call('HDEL', KEYS[i], tostring(days[j]))
    end
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[5])
end
return 1
"""

SCRIPTS: Final[Mapping[str, str]] = {
    "look": _LOOK,
    "swap": _SWAP,
    "read": _READ,
    "fetch": _FETCH,
    "put": _PUT,
    "append": _APPEND,
    "exchange": _VALUES + _EXCHANGE,
    "blocks": _BLOCKS,
    "fold": _FOLD,
}
