package opencode

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/agentpod/agentpod/shared/printable"
)

const (
	maxLine = 16 << 10
	// tailLines and tailBytes bound what a failed boot quotes.
	tailLines = 20
	tailBytes = 2 << 10
	// drain is how long output is awaited once its writer has exited;
	// grandchildren may hold the pipe for ever.
	drain = 200 * time.Millisecond
)

// output carries a process's lines to sandboxd's own stdout and keeps the last ones.
type output struct {
	to io.Writer

	mu   sync.Mutex
	last []string
}

// copyLines reads lines until the pipe ends. Longer ones are cut.
func (o *output) copyLines(pipe *os.File) {
	defer pipe.Close()
	r := bufio.NewReaderSize(pipe, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			o.line(string(line))
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

func (o *output) line(raw string) {
	line := printable.Line(raw, maxLine)
	o.mu.Lock()
	defer o.mu.Unlock()
	// What cannot be logged is lost: OpenCode must not stop for it.
	_, _ = fmt.Fprintf(o.to, "opencode: %s\n", line)
	if len(o.last) == tailLines {
		o.last = o.last[1:]
	}
	o.last = append(o.last, line)
}

// tail returns the last lines, bounded.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return printable.Tail(strings.Join(o.last, "\n"), tailBytes)
}
