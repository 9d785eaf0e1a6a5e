-- For wrk: posts each line of a file in turn, and prints its figures as one line of JSON. A second argument is the time
-- in ms that each connection waits before a request. #NUMBER# in a line becomes a number, another one each time.
local bodies, sent = {}, 0
local headers = { ["Content-Type"] = "application/json" }

function init(arguments)
  local pause = tonumber(arguments[2] or "0")
  if pause > 0 then delay = function() return pause end end
  for line in io.lines(arguments[1]) do
    bodies[#bodies + 1] = string.find(line, "#NUMBER#") and line or wrk.format("POST", nil, headers, line)
  end
end

function request()
  if #bodies == 0 then return wrk.format("GET") end
  sent = sent + 1
  local body = bodies[(sent - 1) % #bodies + 1]
  if string.byte(body) ~= 123 then return body end
  return wrk.format("POST", nil, headers, (string.gsub(body, "#NUMBER#", sent)))
end

function done(summary, latency, requests)
  local failed = summary.errors -- all but status are of connections: no request of theirs is in summary.requests
  io.write(string.format(
    '\n{"requests": %d, "refused": %d, "seconds": %f, "errors": %d, "p50_ms": %f, "p99_ms": %f, "mean_ms": %f}\n',
    summary.requests, failed.status, summary.duration / 1e6,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.mean / 1e3))
end
