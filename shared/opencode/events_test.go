package opencode_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/shared/opencode"
)

// streamOf serves one event stream and ends it.
func streamOf(t *testing.T, text string) *opencode.Client {
	t.Helper()
	return clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/event" || r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("asked for %s with %v", r.URL, r.Header)
		}
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		_, _ = io.WriteString(w, text)
	})
}

func TestEventsAreReadAsTheyAreSent(t *testing.T) {
	for name, tt := range map[string]struct {
		stream string
		want   []opencode.Event
	}{
		"OpenCode's own": {
			"data: {\"type\":\"server.connected\",\"properties\":{}}\n\ndata: {\"id\":\"evt_1\",\"type\":\"session.idle\",\"properties\":{\"sessionID\":\"ses_1\"}}\n\n",
			[]opencode.Event{{"server.connected", json.RawMessage(`{}`)}, {"session.idle", json.RawMessage(`{"sessionID":"ses_1"}`)}},
		},
		"comments, other fields and empty events": {
			": hello\n\nid: 7\nevent: x\nretry: 1\ndata:{\"type\":\"a\"}\n\n\n\n: end\n\n",
			[]opencode.Event{{Type: "a"}},
		},
		"data on several lines": {
			"data: {\"type\":\ndata: \"a\"}\n\n",
			[]opencode.Event{{Type: "a"}},
		},
		"lines with carriage returns": {
			"data: {\"type\":\"a\"}\r\n\r\ndata: {\"type\":\"b\"}\r\n\r\n",
			[]opencode.Event{{Type: "a"}, {Type: "b"}},
		},
		"half an event at the end is dropped": {
			"data: {\"type\":\"a\"}\n\ndata: {\"type\":\"b\"}\n",
			[]opencode.Event{{Type: "a"}},
		},
		"nothing": {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []opencode.Event
			err := streamOf(t, tt.stream).Events(t.Context(), func(e opencode.Event) error {
				got = append(got, e)
				return nil
			})
			if !errors.Is(err, opencode.ErrStreamEnded) {
				t.Errorf("error %v, want the end", err)
			}
			same(t, tt.want, got, nil)
		})
	}
}

func TestStreamsThatAreNoneAreRefused(t *testing.T) {
	event := `data: {"type":"a","properties":"`
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"a page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html>")
		}, opencode.NameInvalidReply},
		"no JSON":                     {stream("data: hello\n\n", ""), opencode.NameInvalidReply},
		"JSON without a type":         {stream("data: {}\n\n", ""), opencode.NameInvalidReply},
		"a list":                      {stream("data: []\n\n", ""), opencode.NameInvalidReply},
		"an event without end":        {stream(event, "x"), opencode.NameTooLarge},
		"a comment without end":       {stream(":", "x"), opencode.NameTooLarge},
		"lines of one event for ever": {stream(event, "x\ndata: "), opencode.NameTooLarge},
		"empty lines of one event":    {stream("", "data\n"), opencode.NameTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			err := clientOf(t, tt.handler).Events(t.Context(), func(opencode.Event) error {
				t.Error("an event was given out")
				return nil
			})
			if e, ok := errors.AsType[*opencode.Error](err); !ok || e.Name != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

// stream serves before and then, if it is not empty, unit for ever.
func stream(before, unit string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		if unit == "" {
			_, _ = io.WriteString(w, before)
			return
		}
		repeat{before, unit}.serve(w, r)
	}
}

func TestALongEventCostsOneLookAtEachByte(t *testing.T) {
	text := strings.Repeat("x", 7<<20)
	var got int
	err := streamOf(t, fmt.Sprintf("data: {\"type\":\"a\",\"properties\":%q}\n\n", text)).Events(t.Context(), func(e opencode.Event) error {
		got = len(e.Properties)
		return nil
	})
	if got != len(text)+2 || !errors.Is(err, opencode.ErrStreamEnded) {
		t.Errorf("%d bytes, error %v", got, err)
	}
}

func TestAnErrorOfTheReaderEndsTheStreamAndIsReturned(t *testing.T) {
	enough := errors.New("enough")
	left := make(chan struct{})
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"type\":\"a\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	if err := c.Events(t.Context(), func(opencode.Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
	<-left
}

// pipe is a transport whose reply is an event stream that a test writes.
type pipe struct{ r *io.PipeReader }

func (p pipe) RoundTrip(req *http.Request) (*http.Response, error) {
	context.AfterFunc(req.Context(), func() { _ = p.r.CloseWithError(req.Context().Err()) })
	return &http.Response{
		StatusCode: http.StatusOK, Request: req, Body: p.r,
		Header: http.Header{"Content-Type": {"text/event-stream"}},
	}, nil
}

func TestASilentStreamEndsAndHeartbeatsKeepIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		c := opencode.New(pipe{r}, "http://opencode.test", "secret")
		go func() {
			for range 30 {
				time.Sleep(11 * time.Second)
				_, _ = io.WriteString(w, ": heartbeat\n\n")
			}
			_, _ = io.WriteString(w, "data: {\"type\":") // and never the rest
		}()
		began := time.Now()
		err := c.Events(t.Context(), func(opencode.Event) error { return nil })
		if took := time.Since(began); !errors.Is(err, opencode.ErrStreamEnded) || took != 390*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

func TestTheTimeOfTheReaderIsNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		c := opencode.New(pipe{r}, "http://opencode.test", "secret")
		go func() {
			_, _ = io.WriteString(w, "data: {\"type\":\"a\"}\n\ndata: {\"type\":\"b\"}\n\n")
			_ = w.Close()
		}()
		events := 0
		err := c.Events(t.Context(), func(opencode.Event) error {
			events++
			time.Sleep(time.Hour)
			return nil
		})
		if events != 2 || !errors.Is(err, io.EOF) {
			t.Errorf("%d events, error %v", events, err)
		}
	})
}

func TestAnEndedContextEndsTheStreamWithItsCause(t *testing.T) {
	cause := errors.New("the task was cancelled")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		cancel(cause)
		<-r.Context().Done()
	})
	if err := c.Events(ctx, func(opencode.Event) error { return nil }); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
}
