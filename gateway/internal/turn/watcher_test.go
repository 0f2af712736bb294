package turn_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/turn"
	"github.com/agentpod/agentpod/shared/opencode"
)

func TestRequestsOfTheTurnAreAnsweredByPolicyAndOthersAreLeftAlone(t *testing.T) {
	const (
		permissions = `[{"id":"per_stranger","sessionID":"ses_stranger"},{"id":"per_loop","sessionID":"ses_loop"},{"id":"../x","sessionID":"ses_other"},` +
			`{"id":"per_root","sessionID":"ses_root"},{"id":"per_deep","sessionID":"ses_grandchild"}]`
		questions = `[{"id":"que_stranger","sessionID":"ses_other"},{"id":"que_child","sessionID":"ses_child"}]`
	)
	for policy, reply := range map[turn.Policy]string{turn.Allow: "once", turn.Deny: "reject", "": "once"} {
		t.Run("policy "+string(policy), func(t *testing.T) {
			ready := make(chan struct{})
			f := newFake(t, until(ready, finished))
			f.set("{}", permissions, questions)
			r := quick()
			r.Policy = policy
			answered := make(chan struct{})
			t.Cleanup(func() { <-answered })
			go func() {
				defer close(answered)
				defer close(ready)
				f.await(fmt.Sprintf(`/permission/per_root/reply {"reply":%q}`, reply))
				f.await(fmt.Sprintf(`/permission/per_deep/reply {"reply":%q}`, reply))
				f.await(`/question/que_child/reject`)
			}()
			if _, err := r.Run(t.Context(), f.client(), turn.Request{Message: "hi"}, nil); err != nil {
				t.Fatal(err)
			}
			for _, entry := range f.log() {
				if strings.Contains(entry, "stranger") || strings.Contains(entry, "loop") || strings.Contains(entry, "..") {
					t.Errorf("another's request was answered: %s", entry)
				}
			}
		})
	}
}

func TestALookThatFailsCostsNothingButTheLook(t *testing.T) {
	ready := make(chan struct{})
	f := newFake(t, until(ready, finished))
	f.broken = true
	f.set("{}", `[{"id":"per_1","sessionID":"ses_root"}]`, "[]")
	go func() {
		defer close(ready)
		f.await(`/session/ses_root/message {"parts":[{"text":"hi","type":"text"}]}`)
		f.mu.Lock()
		f.broken = false
		f.mu.Unlock()
		f.await(`/permission/per_1/reply {"reply":"once"}`)
	}()
	if res, err := quick().Run(t.Context(), f.client(), turn.Request{Message: "hi"}, nil); err != nil || res.Response != "done" {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestALookThatHangsDoesNotDelayTheReply(t *testing.T) {
	looking := make(chan struct{})
	var once sync.Once
	f := newFake(t, until(looking, finished))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/session/status" {
			once.Do(func() { close(looking) })
			<-r.Context().Done()
			return
		}
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	began := time.Now()
	if _, err := quick().Run(t.Context(), opencode.New(transport, s.URL, "secret"), turn.Request{Message: "hi"}, nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the reply took %s", took)
	}
}
