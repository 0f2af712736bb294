// Package scriptedmodel is a model that answers by script. It speaks the OpenAI
// chat-completions API (streamed and not), so that OpenCode talks to it through
// the provider package @ai-sdk/openai-compatible, and it stands in for a real
// model wherever answers must be the same every time: in tests, and in a first
// run without a provider key. [GitServer] beside it serves a small repository
// over the git protocol, so that a sandbox can clone without the internet.
//
// What the model does stands in the last user message. A message whose first
// line is no command is echoed. Otherwise every line is one step, done in order;
// a line that is no command is echoed. The commands:
//
//	say TEXT                       answer TEXT
//	write NAME: CONTENT            call the write tool (\n in CONTENT is a newline), then answer "wrote NAME"
//	run COMMAND                    call the bash tool, then answer with its output
//	ask [QUESTION]                 call the question tool, then answer with the reply
//	call TOOL JSON                 call any tool with these arguments, then answer with its result
//	chunks N DELAY                 answer N chunks, DELAY apart: chunks 5 100ms
//	flood SIZE                     answer SIZE bytes of words: flood 5MB
//	stall [DURATION]               send headers, then nothing: for DURATION, or until the client leaves
//	fail 401|429|500|503 [MESSAGE] fail the OpenAI way, with any status from 400 to 599
//	once fail STATUS [MESSAGE]     fail the first time this session asks, then go on
//	html                           answer 200 with an HTML page
//	drop                           close the connection in the middle of the answer
//
// A reply ends at a tool call; the next request brings the tool's result and the
// script goes on behind it. How far it has come is the number of tool results
// after the last user message, so nothing is remembered between requests but
// which `once` has failed. The steps fail and html choose the status only while
// nothing has been sent; later they arrive in the middle of the stream.
//
// A request without tools is OpenCode asking for a title or a summary: it gets
// a fixed answer and never runs a script.
package scriptedmodel
