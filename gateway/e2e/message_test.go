package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestAModelThatFailsIsSaidNotHidden(t *testing.T) {
	g := shared(t)
	g.create(t, "failing", nil)
	defer g.delete(t, "failing")
	send := func(t *testing.T, text string, timeout time.Duration, want int) object {
		t.Helper()
		began := time.Now()
		got := g.call(t, http.MethodPost, "/sandbox/failing/message",
			object{"message": text, "timeoutMs": timeout.Milliseconds()}, want)
		// The deadline, and what an abort and a loaded machine may take besides.
		if took := time.Since(began); took > timeout+15*time.Second {
			t.Errorf("answered after %s, the deadline was %s", took, timeout)
		}
		return got
	}
	t.Run("401 is a 200 with what the provider said", func(t *testing.T) {
		got := send(t, "fail 401 no such key", 60*time.Second, http.StatusOK)
		text, _ := got["error"].(string)
		details, _ := got["errorDetails"].(object)
		if !strings.Contains(text, "401") || !strings.Contains(text, "no such key") || details["statusCode"] != 401.0 {
			t.Errorf("got %v", got)
		}
		if parts, ok := got["parts"].([]any); !ok || len(parts) != 0 {
			t.Errorf("parts = %v", got["parts"])
		}
	})
	for name, script := range map[string]string{
		"500":             "fail 500 it burns",
		"429":             "fail 429 slow down",
		"an HTML page":    "html",
		"a model stalled": "stall 120s",
	} {
		t.Run(name+" is a 504 at the deadline", func(t *testing.T) {
			got := send(t, script, 5*time.Second, http.StatusGatewayTimeout)
			session, _ := got["sessionId"].(string)
			if got["code"] != "turn_deadline" || !strings.HasPrefix(session, "ses_") {
				t.Errorf("got %v", got)
			}
			for _, reason := range []string{"it burns", "slow down"} {
				if strings.Contains(script, reason) && !strings.Contains(fmt.Sprint(got["error"]), reason) {
					t.Errorf("the reason is missing: %v", got["error"])
				}
			}
			// The turn was aborted: the session is free for the next one.
			eventually(t, "the session is idle again", 10*time.Second, func() bool {
				status := g.call(t, http.MethodGet, "/sandbox/failing/opencode/session/status", nil, http.StatusOK)
				return status[session] == nil
			})
		})
	}
	t.Run("a model that refuses connections is a 504 with the reason", func(t *testing.T) {
		g.call(t, http.MethodPost, "/sandbox/failing/wake", object{"config": object{
			"provider": object{"away": object{
				"npm": "@ai-sdk/openai-compatible", "name": "Away",
				"options": object{"baseURL": "http://127.0.0.1:9/v1", "apiKey": "x"}, "models": object{"m": object{"name": "m"}},
			}},
		}}, http.StatusOK)
		got := g.call(t, http.MethodPost, "/sandbox/failing/message", object{
			"message": "hello", "timeoutMs": 6000, "model": object{"providerID": "away", "modelID": "m"},
		}, http.StatusGatewayTimeout)
		if got["code"] != "turn_deadline" || !strings.Contains(strings.ToLower(fmt.Sprint(got["error"])), "connect") {
			t.Errorf("got %v", got)
		}
	})
	t.Run("a connection that drops midway never ends in an empty success", func(t *testing.T) {
		status, raw, err := g.do(t.Context(), http.MethodPost, "/sandbox/failing/message", object{"message": "drop", "timeoutMs": 6000})
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Response, Error string }
		_ = json.Unmarshal(raw, &got)
		if status == http.StatusOK && got.Error == "" && got.Response == "" || status >= 500 && status != http.StatusGatewayTimeout {
			t.Errorf("%d %s", status, raw)
		}
	})
	t.Run("afterwards it answers as before", func(t *testing.T) {
		if got := g.message(t, "failing", "still there?", http.StatusOK); got["response"] != "echo: still there?" {
			t.Errorf("got %v", got)
		}
	})
}

func TestNobodyNeedsToAnswerAHeadlessTurnsQuestions(t *testing.T) {
	g := shared(t)
	g.create(t, "asks", object{"config": object{"permission": object{"bash": "ask", "edit": "ask"}}})
	defer g.delete(t, "asks")
	got := g.message(t, "asks", "run echo per$((40+2))mitted", http.StatusOK)
	if response, _ := got["response"].(string); !strings.Contains(response, "per42mitted") {
		t.Errorf("a permission request: %v", got)
	}
	got = g.message(t, "asks", "ask Which one? | A | B", http.StatusOK)
	if got["error"] == nil && got["response"] == "" {
		t.Errorf("a question: %v", got)
	}
}

func TestATurnOutlivesItsCaller(t *testing.T) {
	g := shared(t)
	g.create(t, "patient", nil)
	defer g.delete(t, "patient")
	g.message(t, "patient", "warm up", http.StatusOK)

	t.Run("who disconnects finds the answer in the session", func(t *testing.T) {
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if _, _, err := g.do(ctx, http.MethodPost, "/sandbox/patient/message", object{"message": "chunks 8 300ms"}); err == nil {
			t.Fatal("the answer came before the caller left")
		}
		eventually(t, "the turn's answer", 30*time.Second, func() bool {
			_, raw, err := g.do(t.Context(), http.MethodGet, "/sandbox/patient/opencode/session", nil)
			if err != nil {
				return false
			}
			var sessions []struct{ ID string }
			_ = json.Unmarshal(raw, &sessions)
			for _, s := range sessions {
				_, messages, err := g.do(t.Context(), http.MethodGet, "/sandbox/patient/opencode/session/"+s.ID+"/message", nil)
				if err == nil && strings.Contains(string(messages), "chunks 8 300ms") && strings.Contains(string(messages), `"reason":"stop"`) {
					return true
				}
			}
			return false
		})
	})
	t.Run("who asks not to wait gets the session to watch", func(t *testing.T) {
		resp, err := g.open(t.Context(), http.MethodPost, "/sandbox/patient/message", object{"message": "chunks 15 200ms"},
			http.Header{"Prefer": {"respond-async"}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var got struct{ SessionID string }
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("status %d, %v", resp.StatusCode, err)
		}
		eventually(t, "the sandbox is busy meanwhile", 3*time.Second, func() bool {
			return g.call(t, http.MethodGet, "/sandbox/patient", nil, http.StatusOK)["busy"] == true
		})
		eventually(t, "the turn ends", 30*time.Second, func() bool {
			_, raw, err := g.do(t.Context(), http.MethodGet, "/sandbox/patient/opencode/session/"+got.SessionID+"/message", nil)
			return err == nil && strings.Contains(string(raw), `"reason":"stop"`)
		})
	})
}

func TestEachCallerGetsTheAnswerToItsOwnMessage(t *testing.T) {
	g := shared(t)
	g.create(t, "two-callers", nil)
	defer g.delete(t, "two-callers")
	session, _ := g.message(t, "two-callers", "say warm", http.StatusOK)["sessionId"].(string)
	type answer struct {
		status int
		body   object
	}
	answers := make([]chan answer, 3)
	for i := range answers {
		answers[i] = make(chan answer, 1)
	}
	send := func(i int, text string) {
		asked := len(g.model.Requests())
		go func() {
			status, raw, err := g.do(t.Context(), http.MethodPost, "/sandbox/two-callers/message", object{"message": text, "sessionId": session})
			var body object
			if err == nil {
				err = json.Unmarshal(raw, &body)
			}
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
			answers[i] <- answer{status, body}
		}()
		if i == 0 {
			eventually(t, "the model is asked", 30*time.Second, func() bool { return len(g.model.Requests()) > asked })
		}
	}
	send(0, "chunks 6 500ms")
	send(1, "say the second")
	send(2, "say the third")
	answered := 0
	for i, want := range []string{"chunk", "the second", "the third"} {
		got := <-answers[i]
		switch {
		case got.status == http.StatusOK && strings.Contains(fmt.Sprint(got.body["response"]), want):
			answered++
		case i > 0 && got.status == http.StatusConflict && got.body["code"] == "session_busy":
		default:
			t.Errorf("message %d: %d %v, want %q", i, got.status, got.body, want)
		}
	}
	if answered < 2 {
		t.Errorf("only %d messages were answered", answered)
	}
}
