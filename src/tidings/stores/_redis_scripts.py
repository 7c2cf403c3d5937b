"""What Redis runs by itself, in one step and one round trip for a whole batch, and how a key's value is laid out.

    lease   L, token (8 bytes), until when in milliseconds of Redis' own clock (13 digits), the rest
    done    D, token, the rest
    rest    length of the digest (1 byte), digest, event id

The token is the claim's. It stays in the record of what is done, so that a step whose answer was lost can be taken
again: it finds its own work, and says so. A lease that ran out stays there for a while with its token, so that its
holder, being late, can tell "nobody took it" from "somebody had it meanwhile, and gave it back".
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

import msgspec

TOKEN_BYTES: Final = 8


class Script(msgspec.Struct, frozen=True):
    """A script and the name by which Redis knows it once it was sent."""

    text: str
    sha: str


def _script(text: str) -> Script:
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


CLAIM: Final = _script("""
-- KEYS: the fence, keys.  ARGV: token, lease and leftover in ms, '1' if a number is wanted anyhow, each key's rest.
-- Answer: one letter for each key (new, busy, done), the fencing number, then the rest of each key that is done.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local states, new, answer = {}, {}, {'', ''}
for i = 2, #KEYS do
  local value = redis.call('GET', KEYS[i])
  local kind = value and value:sub(1, 1)
  if kind == 'D' then
    states[#states + 1] = 'd'
    answer[#answer + 1] = value:sub(10)
  elseif kind == 'L' and value:sub(2, 9) ~= ARGV[1] and tonumber(value:sub(10, 22)) > now then
    states[#states + 1] = 'b'
  else
    states[#states + 1] = 'n'
    new[#new + 1] = i
  end
end
answer[1] = table.concat(states)
if #new > 0 or ARGV[4] == '1' then
  -- The clock takes part, so that the number grows also where Redis forgot the last one.
  local fence = time[1] * 1000000 + time[2]
  local last = tonumber(redis.call('GET', KEYS[1]) or '0')
  if last >= fence then fence = last + 1 end
  answer[2] = string.format('%.0f', fence)
  redis.call('SET', KEYS[1], answer[2])
  local head = 'L' .. ARGV[1] .. string.format('%013.0f', now + ARGV[2])
  for _, i in ipairs(new) do
    redis.call('SET', KEYS[i], head .. ARGV[i + 3], 'PX', ARGV[3])
  end
end
return answer
""")

RENEW: Final = _script("""
-- KEYS: keys.  ARGV: token, lease and leftover in ms.  Answer: for each key 1 if it is still ours.
local time = redis.call('TIME')
local until_ = string.format('%013.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
local answer = {}
for i, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  if value and value:sub(1, 9) == 'L' .. ARGV[1] then
    redis.call('PEXPIRE', key, ARGV[3])  -- first a write that a full Redis does not refuse; it allows those that follow
    redis.call('SET', key, value:sub(1, 9) .. until_ .. value:sub(23), 'PX', ARGV[3])
    answer[i] = '1'
  else
    answer[i] = '0'
  end
end
return table.concat(answer)
""")

FINISH: Final = _script("""
-- KEYS: keys.  ARGV: token, then for each key '-' to give it back, or how long it stays done in ms, '0' for ever.
-- Answer: for each key 1 if it was ours.
local answer = {}
for i, key in ipairs(KEYS) do
  local value, keep = redis.call('GET', key), ARGV[i + 1]
  answer[i] = '0'
  if value and value:sub(2, 9) == ARGV[1] then
    if value:sub(1, 1) == 'L' then
      redis.call('PERSIST', key)  -- first a write that a full Redis does not refuse; it allows those that follow
      if keep == '-' then
        redis.call('DEL', key)
      elseif keep == '0' then
        redis.call('SET', key, 'D' .. ARGV[1] .. value:sub(23))
      else
        redis.call('SET', key, 'D' .. ARGV[1] .. value:sub(23), 'PX', keep)
      end
      answer[i] = '1'
    elseif keep ~= '-' then
      answer[i] = '1'  -- done before, and only the answer was lost
    end
  end
end
return table.concat(answer)
""")


def pack(event_id: str, digest: bytes) -> bytes:
    """What is kept of the event, in a claim's arguments."""
    return bytes((len(digest),)) + digest + event_id.encode(errors="surrogatepass")


def unpack(rest: bytes) -> tuple[str, bytes]:
    """Event id and digest of what was applied."""
    end = 1 + rest[0]
    return rest[end:].decode(errors="surrogatepass"), rest[1:end]
