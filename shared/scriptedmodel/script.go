package scriptedmodel

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// step is one line of a script: a tool to call, or something to play.
type step struct {
	tool string
	args json.RawMessage
	// after makes of the tool's result what the model then says.
	after func(result string) string

	play func(ctx context.Context, a *answer) error
}

// command is one word of the script language. parse reports false when the
// argument does not fit, and then the line is no command.
type command struct {
	usage, help string
	parse       func(arg string) (step, bool)
}

func (c command) name() string {
	name, _, _ := strings.Cut(c.usage, " ")
	return name
}

// commands is the script language: the parser, the help of the command and
// the package comment (by a test) all follow it.
func (s *Server) commands(req *Request) []command {
	return []command{
		{"say TEXT", "answer TEXT", func(arg string) (step, bool) {
			return say(arg), arg != ""
		}},
		{"write NAME: CONTENT", `call the write tool (\n in CONTENT is a newline), then answer "wrote NAME"`, s.parseWrite},
		{"run COMMAND", "call the bash tool, then answer with its output", func(arg string) (step, bool) {
			return callStep("bash", map[string]any{"command": arg}), arg != ""
		}},
		{"ask [QUESTION]", "call the question tool, then answer with the reply", parseAsk},
		{"call TOOL JSON", "call any tool with these arguments, then answer with its result", parseCall},
		{"chunks N DELAY", "answer N chunks, DELAY apart: chunks 5 100ms", parseChunks},
		{"flood SIZE", "answer SIZE bytes of words: flood 5MB", parseFlood},
		{"stall [DURATION]", "send headers, then nothing: for DURATION, or until the client leaves", parseStall},
		{"fail 401|429|500|503 [MESSAGE]", "fail the OpenAI way, with any status from 400 to 599", parseFail},
		{"once fail STATUS [MESSAGE]", "fail the first time this session asks, then go on", func(arg string) (step, bool) {
			return s.parseOnce(req, arg)
		}},
		{"html", "answer 200 with an HTML page", func(arg string) (step, bool) {
			return step{play: func(_ context.Context, a *answer) error { return a.html() }}, arg == ""
		}},
		{"drop", "close the connection in the middle of the answer", func(arg string) (step, bool) {
			return step{play: func(_ context.Context, a *answer) error {
				if err := a.line("about to be cut o"); err != nil {
					return err
				}
				if err := a.begin(); err != nil {
					return err
				}
				return errDropped
			}}, arg == ""
		}},
	}
}

// Language describes the script language, a line for each command.
func Language() string {
	var b strings.Builder
	for _, c := range New(Options{}).commands(nil) {
		fmt.Fprintf(&b, "  %-31s %s\n", c.usage, c.help)
	}
	return b.String()
}

// play runs the part of the script that this request is for: from behind the
// last tool call whose result has come to the next tool call or the end.
func (s *Server) play(ctx context.Context, a *answer, req *Request) error {
	if len(req.Tools) == 0 {
		return a.text("Scripted answers")
	}
	steps, results := s.parse(req), req.toolResults()
	for len(results) > 0 && len(steps) > 0 {
		if st := steps[0]; st.tool != "" {
			if len(results) == 1 {
				if err := a.line(st.after(results[0])); err != nil {
					return err
				}
			}
			results = results[1:]
		}
		steps = steps[1:]
	}
	for _, st := range steps {
		if st.tool != "" {
			return a.call(st.tool, st.args)
		}
		if err := st.play(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// parse reads the script of a request. A tool that the client does not offer
// becomes a sentence that says so.
func (s *Server) parse(req *Request) []step {
	script := req.UserMessage()
	if s.opts.Script != nil {
		if chosen := s.opts.Script(*req); chosen != "" {
			script = chosen
		}
	}
	commands := s.commands(req)
	var steps []step
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		st, ok := parseLine(commands, line)
		switch {
		case !ok && len(steps) == 0:
			return []step{echo(script)}
		case !ok:
			st = echo(line)
		case st.tool != "" && !req.offers(st.tool):
			st = say(fmt.Sprintf("there is no tool %q here", st.tool))
		}
		steps = append(steps, st)
	}
	if len(steps) == 0 {
		return []step{echo(script)}
	}
	return steps
}

func parseLine(commands []command, line string) (step, bool) {
	name, arg, _ := strings.Cut(line, " ")
	for _, c := range commands {
		if c.name() == name {
			return c.parse(strings.TrimSpace(arg))
		}
	}
	return step{}, false
}
