package scriptedmodel

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxResult = 8 << 10 // of a tool's result in the answer, in bytes
	maxChunks = 100_000
	maxFlood  = 256 << 20
	maxWait   = time.Hour
	floodStep = 1 << 10
)

func say(text string) step {
	return step{play: func(_ context.Context, a *answer) error { return a.line(text) }}
}

// echo answers in a few pieces, as a model would.
func echo(text string) step {
	return step{play: func(_ context.Context, a *answer) error {
		if err := a.line("echo: "); err != nil {
			return err
		}
		const pieces = 3
		for size := max(len(text)/pieces, 1); text != ""; {
			n := min(size, len(text))
			for n < len(text) && !utf8.RuneStart(text[n]) {
				n++
			}
			if err := a.text(text[:n]); err != nil {
				return err
			}
			text = text[n:]
		}
		return nil
	}}
}

// callStep calls a tool and then answers with its result.
func callStep(tool string, args any) step {
	b, err := json.Marshal(args)
	if err != nil {
		panic(err) // maps of strings always marshal
	}
	return step{tool: tool, args: b, after: func(result string) string { return cut(result, maxResult) }}
}

func (s *Server) parseWrite(arg string) (step, bool) {
	name, content, ok := strings.Cut(arg, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t") {
		return step{}, false
	}
	file := name
	if !path.IsAbs(file) {
		file = path.Join(s.opts.Workspace, file)
	}
	content = strings.ReplaceAll(strings.TrimPrefix(content, " "), `\n`, "\n")
	st := callStep("write", map[string]any{"filePath": file, "content": content})
	st.after = func(result string) string {
		if strings.HasPrefix(result, "Wrote") {
			return "wrote " + name
		}
		return "could not write " + name + ": " + cut(result, maxResult)
	}
	return st, true
}

func parseAsk(arg string) (step, bool) {
	if arg == "" {
		arg = "Shall I go on?"
	}
	type option struct {
		Label       string `json:"label"`
		Description string `json:"description"`
	}
	return callStep("question", map[string]any{"questions": []map[string]any{{
		"question": arg, "header": "Scripted",
		"options": []option{{"Yes", "Go on"}, {"No", "Stop here"}},
	}}}), true
}

func parseCall(arg string) (step, bool) {
	tool, args, _ := strings.Cut(arg, " ")
	args = strings.TrimSpace(args)
	if tool == "" || !json.Valid([]byte(args)) {
		return step{}, false
	}
	return callStep(tool, json.RawMessage(args)), true
}

func parseChunks(arg string) (step, bool) {
	count, rest, _ := strings.Cut(arg, " ")
	n, err := strconv.Atoi(count)
	delay, ok := duration(rest)
	if err != nil || n < 1 || n > maxChunks || !ok {
		return step{}, false
	}
	return step{play: func(ctx context.Context, a *answer) error {
		for i := range n {
			if i > 0 {
				if err := wait(ctx, delay); err != nil {
					return err
				}
			}
			if err := a.line(fmt.Sprintf("chunk %d", i+1)); err != nil {
				return err
			}
		}
		return nil
	}}, true
}

func parseFlood(arg string) (step, bool) {
	size, ok := byteSize(arg)
	if !ok {
		return step{}, false
	}
	words := strings.Repeat("flood of words, ", floodStep/16)
	return step{play: func(ctx context.Context, a *answer) error {
		for left := size; left > 0; left -= floodStep {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := a.text(words[:min(left, floodStep)]); err != nil {
				return err
			}
		}
		return nil
	}}, true
}

func parseStall(arg string) (step, bool) {
	d, ok := time.Duration(-1), true
	if arg != "" {
		d, ok = duration(arg)
	}
	return step{play: func(ctx context.Context, a *answer) error {
		if err := a.begin(); err != nil {
			return err
		}
		if d < 0 {
			<-ctx.Done()
			return ctx.Err()
		}
		if err := wait(ctx, d); err != nil {
			return err
		}
		return a.line("stalled " + d.String())
	}}, ok
}

func parseFail(arg string) (step, bool) {
	code, message, _ := strings.Cut(arg, " ")
	status, err := strconv.Atoi(code)
	if err != nil || status < 400 || status > 599 {
		return step{}, false
	}
	if message == "" {
		message = fmt.Sprintf("scripted failure: %d %s", status, http.StatusText(status))
	}
	return step{play: func(_ context.Context, a *answer) error { return a.fail(status, message) }}, true
}

func (s *Server) parseOnce(req *Request, arg string) (step, bool) {
	verb, rest, _ := strings.Cut(arg, " ")
	failing, ok := parseFail(strings.TrimSpace(rest))
	if verb != "fail" || !ok {
		return step{}, false
	}
	return step{play: func(ctx context.Context, a *answer) error {
		// Without a session the key tells clients apart. The number of messages
		// before the script makes the same line fail again when asked again.
		key := fmt.Sprintf("%s|%s|%d|%s", req.SessionID, req.Authorization, req.lastUser(), arg)
		s.mu.Lock()
		first := s.failed.first(key)
		s.mu.Unlock()
		if first {
			return failing.play(ctx, a)
		}
		return a.line("answered after failing once")
	}}, true
}

// wait returns after d, or with the context's error before.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func duration(s string) (time.Duration, bool) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	return d, err == nil && d >= 0 && d <= maxWait
}

// byteSize reads 100, 64KB or 5MB (powers of 1024), up to maxFlood.
func byteSize(s string) (int, bool) {
	digits := strings.TrimRight(strings.ToUpper(s), "KMB")
	unit, ok := map[string]int{"": 1, "B": 1, "K": 1 << 10, "KB": 1 << 10, "M": 1 << 20, "MB": 1 << 20}[strings.ToUpper(s)[len(digits):]]
	n, err := strconv.Atoi(digits)
	if err != nil || !ok || n < 1 || n > maxFlood/unit {
		return 0, false
	}
	return n * unit, true
}

// cut shortens s to at most n bytes, in whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
