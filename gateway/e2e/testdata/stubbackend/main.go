// Command stubbackend takes OpenCode's place in a sandbox for the benchmarks of
// the proxy. It does as little as a server can, so that what is measured is the
// proxy: one goroutine a connection, replies that were made ahead, no HTTP library.
package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// down is how large the reply to /bench/down is, in bytes.
const down = 10_000_000

// called as: serve --hostname HOST --port PORT.
func main() {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(os.Args[3], os.Args[5]))
	if err != nil {
		panic(err)
	}
	replies := map[string][]byte{
		"/global/health": reply(`{"healthy":true,"version":"stub"}`),
		"/pty":           reply(`[]`),
		"/bench/small":   reply(`{"id":"ses_0123456789","title":"` + strings.Repeat("a", 200) + `"}`),
		"/bench/down":    reply(strings.Repeat("0123456789", down/10)),
	}
	for {
		c, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer c.Close()
			serve(c, replies)
		}()
	}
}

// reply is a whole reply.
func reply(body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// serve answers the requests of one connection.
func serve(c net.Conn, replies map[string][]byte) {
	r := bufio.NewReaderSize(c, 64<<10)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		_, target, _ := strings.Cut(line, " ")
		target, _, _ = strings.Cut(target, " ")
		length, chunked := 0, false
		for {
			header, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			header = bytes.TrimSpace(header)
			if len(header) == 0 {
				break
			}
			name, value, _ := bytes.Cut(header, []byte(":"))
			switch {
			case bytes.EqualFold(name, []byte("Content-Length")):
				length, _ = strconv.Atoi(string(bytes.TrimSpace(value)))
			case bytes.EqualFold(name, []byte("Transfer-Encoding")):
				chunked = true
			}
		}
		if chunked {
			return // nobody here sends that
		}
		if _, err := io.CopyN(io.Discard, r, int64(length)); err != nil {
			return
		}
		path, query, _ := strings.Cut(target, "?")
		if path == "/event" {
			events(c, query)
			return
		}
		answer := replies[path]
		if answer == nil {
			answer = reply(`{}`)
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// events writes numbered events until the client leaves: COUNT of them, one each
// EVERY milliseconds, each with the time at which it was written.
func events(c net.Conn, query string) {
	var count, every int
	if _, err := fmt.Sscanf(query, "count=%d&every=%d", &count, &every); err != nil {
		count, every = 1, 1000
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
	tick := time.NewTicker(time.Duration(every) * time.Millisecond)
	defer tick.Stop()
	for seq := 1; seq <= count; seq++ {
		event := fmt.Sprintf("data: {\"seq\":%d,\"at\":%d}\n\n", seq, time.Now().UnixNano())
		if _, err := fmt.Fprintf(c, "%s%x\r\n%s\r\n", head, len(event), event); err != nil {
			return
		}
		head = ""
		if seq < count {
			<-tick.C
		}
	}
	_, _ = io.Copy(io.Discard, c) // until the client leaves
}
