package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// fakeEngine is an engine that says what a real one says when it is in trouble.
type fakeEngine struct {
	api     string // of the ping; empty means that it sends none
	replies map[string]reply
	calls   atomic.Int64
}

type reply struct {
	status int
	text   string // the message of an error, or a JSON document
	stall  bool   // answer only when the caller has left
	drop   bool   // cut the connection in the middle of the body
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	f.calls.Add(1)
	if f.api != "" {
		w.Header().Set("Api-Version", f.api)
	}
	path := req.URL.Path
	if strings.HasPrefix(path, "/v") {
		_, path, _ = strings.Cut(path[1:], "/")
		path = "/" + path
	}
	rep, ok := f.replies[req.Method+" "+path]
	if !ok {
		rep, ok = defaultReplies()[req.Method+" "+path]
	}
	if !ok {
		rep = reply{status: http.StatusNotFound, text: "page not found"}
	}
	switch {
	case rep.stall:
		<-req.Context().Done()
		return
	case rep.drop:
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"Id":`))
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(rep.status)
	if rep.status >= http.StatusBadRequest {
		_ = json.NewEncoder(w).Encode(map[string]string{"message": rep.text})
		return
	}
	_, _ = w.Write([]byte(rep.text))
}

const (
	fakeID      = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	fakeNetwork = `[{"Name":"agentpod-fake","Id":"bbbbbbbbbbbbbbbb","Driver":"bridge","Labels":{"agentpod.installation":"fake"},` +
		`"Options":{"com.docker.network.bridge.enable_icc":"false"},"IPAM":{"Config":[{"Subnet":"198.51.100.0/24","Gateway":"198.51.100.1/24"}]}}]`
	fakeContainer = `{"Id":"` + fakeID + `","Name":"/agentpod-fake-x","State":{"Status":"exited","StartedAt":"2026-01-01T00:00:00Z"},` +
		`"Config":{"Labels":{"agentpod.installation":"fake"}},"NetworkSettings":{}}`
)

func defaultReplies() map[string]reply {
	return map[string]reply{
		"HEAD /_ping":                           {status: http.StatusOK},
		"GET /info":                             {status: http.StatusOK, text: `{"NCPU":2,"ServerVersion":"fake","Runtimes":{"runc":{}},"SystemTime":"2026-01-01T00:00:00Z"}`},
		"GET /networks":                         {status: http.StatusOK, text: fakeNetwork},
		"GET /volumes/home":                     {status: http.StatusNotFound, text: "get home: no such volume"},
		"POST /volumes/create":                  {status: http.StatusCreated, text: `{"Name":"home","Labels":{"agentpod.installation":"fake"}}`},
		"DELETE /volumes/home":                  {status: http.StatusNoContent},
		"POST /containers/create":               {status: http.StatusCreated, text: `{"Id":"` + fakeID + `"}`},
		"GET /containers/" + fakeID + "/json":   {status: http.StatusOK, text: fakeContainer},
		"POST /containers/" + fakeID + "/start": {status: http.StatusNoContent},
		"DELETE /containers/" + fakeID:          {status: http.StatusNoContent},
	}
}

// serveFake serves an engine on a socket of its own and returns a Runtime on it.
func serveFake(t *testing.T, f *fakeEngine, change ...func(*Settings)) *Runtime {
	t.Helper()
	path := filepath.Join(socketDir(t), "engine.sock")
	ln, err := (&net.ListenConfig{}).Listen(testContext(t), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f, ReadHeaderTimeout: deadline}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return fakeRuntime(t, "unix://"+path, change...)
}

// socketDir is short: a socket's path may have some hundred bytes only.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fake") //nolint:usetesting // its path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func fakeRuntime(t *testing.T, host string, change ...func(*Settings)) *Runtime {
	t.Helper()
	set := limits("fake", "img:1")
	set.Host = host
	for _, f := range change {
		f(&set)
	}
	r, err := New(set, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// everyCall is each method that asks the engine something.
func everyCall(r *Runtime) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Ready": r.Ready,
		"Create": func(ctx context.Context) error {
			_, err := r.Create(ctx, lifecycle.Spec{SandboxID: "x", Volume: "home"})
			return err
		},
		"Start":        func(ctx context.Context) error { _, err := r.Start(ctx, fakeID); return err },
		"Stop":         func(ctx context.Context) error { return r.Stop(ctx, fakeID, time.Second) },
		"Pause":        func(ctx context.Context) error { return r.Pause(ctx, fakeID) },
		"Unpause":      func(ctx context.Context) error { return r.Unpause(ctx, fakeID) },
		"Shrink":       func(ctx context.Context) error { return r.Shrink(ctx, fakeID) },
		"Rename":       func(ctx context.Context) error { return r.Rename(ctx, fakeID, "y") },
		"Remove":       func(ctx context.Context) error { return r.Remove(ctx, fakeID) },
		"CreateVolume": func(ctx context.Context) error { return r.CreateVolume(ctx, "home") },
		"RemoveVolume": func(ctx context.Context) error { return r.RemoveVolume(ctx, "home") },
		"Inspect":      func(ctx context.Context) error { _, err := r.Inspect(ctx, fakeID); return err },
		"Find":         func(ctx context.Context) error { _, err := r.Find(ctx, "x"); return err },
		"Alive":        func(ctx context.Context) error { return r.Alive(ctx, lifecycle.Run{ID: fakeID}) },
		"List":         func(ctx context.Context) error { _, err := r.List(ctx); return err },
		"Volumes":      func(ctx context.Context) error { _, err := r.Volumes(ctx); return err },
		"Stats":        func(ctx context.Context) error { _, err := r.Stats(ctx, fakeID); return err },
		"Logs":         func(ctx context.Context) error { _, err := r.Logs(ctx, fakeID, lifecycle.LogOptions{}); return err },
		"Wait":         func(ctx context.Context) error { _, err := r.Wait(ctx, fakeID); return err },
		"Events": func(ctx context.Context) error {
			return r.Events(ctx, func() {}, func(lifecycle.Event) {})
		},
		"EnsureNetwork": func(ctx context.Context) error { _, err := r.EnsureNetwork(ctx); return err },
		"RemoveNetwork": r.RemoveNetwork,
	}
}

func TestWithoutAnEngineEveryCallSaysSo(t *testing.T) {
	r := fakeRuntime(t, "unix:///nowhere/engine.sock")
	for name, call := range everyCall(r) {
		err := call(testContext(t))
		if !sandbox.HasCode(err, sandbox.CodeEngineAway) {
			t.Errorf("%s: %v", name, err)
		} else if !strings.Contains(messageOf(err), "unix:///nowhere/engine.sock") {
			t.Errorf("%s does not say what was tried: %s", name, messageOf(err))
		}
	}
}

func TestAnEngineThatIsTooOldIsTold(t *testing.T) {
	for _, api := range []string{"1.24", "1.40"} {
		r := serveFake(t, &fakeEngine{api: api})
		for name, call := range everyCall(r) {
			err := call(testContext(t))
			if !sandbox.HasCode(err, sandbox.CodeEngineTooOld) || !strings.Contains(messageOf(err), api) {
				t.Errorf("%s on API %s: %v", name, api, err)
			}
		}
	}
	r := serveFake(t, &fakeEngine{})
	wantCode(t, r.Ready(testContext(t)), sandbox.CodeEngineAway)
}

func TestAnEngineThatHangsIsGivenUpOn(t *testing.T) {
	f := &fakeEngine{api: "1.41", replies: map[string]reply{}}
	for key := range defaultReplies() {
		if key != "HEAD /_ping" && key != "GET /info" {
			f.replies[key] = reply{stall: true}
		}
	}
	for _, key := range []string{
		"GET /images/img:1/json", "GET /containers/agentpod-fake-x/json", "GET /containers/json", "GET /volumes", "GET /events",
	} {
		f.replies[key] = reply{stall: true}
	}
	r := serveFake(t, f, func(s *Settings) { s.CallTimeout, s.SlowTimeout = 50*time.Millisecond, 50*time.Millisecond })
	for name, call := range everyCall(r) {
		ctx, cancel := context.WithTimeout(testContext(t), 20*time.Second)
		if err := call(ctx); !sandbox.HasCode(err, sandbox.CodeEngineAway) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	for name, call := range everyCall(r) {
		ctx, cancel := context.WithTimeout(testContext(t), 10*time.Millisecond)
		err := call(ctx)
		if name == "Events" {
			if err != nil {
				t.Errorf("%s whose context ended: %v", name, err)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s whose context ended: %v", name, err)
		}
		cancel()
	}
}

func TestAnEngineThatBreaksOffAReplyIsAway(t *testing.T) {
	r := serveFake(t, &fakeEngine{api: "1.41", replies: map[string]reply{
		"GET /containers/" + fakeID + "/json": {drop: true},
	}})
	_, err := r.Inspect(testContext(t), fakeID)
	wantCode(t, err, sandbox.CodeEngineAway)
}

// The texts are what engines said (20.10 to 28), but for the names in them.
func TestTheEnginesWordsBecomeCodes(t *testing.T) {
	const (
		create = "POST /containers/create"
		start  = "POST /containers/" + fakeID + "/start"
		volume = "POST /volumes/create"
	)
	oci := "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
	tests := map[string]struct {
		route  string
		status int
		text   string
		code   sandbox.Code
	}{
		"a full disk at create":       {create, 500, "error creating overlay mount to /var/lib/docker/overlay2/0a/merged: no space left on device", sandbox.CodeDiskFull},
		"a full disk at start":        {start, 500, oci + "error during container init: open /run/x: no space left on device: unknown", sandbox.CodeDiskFull},
		"a full disk for the volume":  {volume, 500, "create home: error while creating volume root path '/var/lib/docker/volumes/home': mkdir /var/lib/docker/volumes/home: no space left on device", sandbox.CodeDiskFull},
		"a quota":                     {create, 500, "mkdir /var/lib/docker/overlay2/0a: disk quota exceeded", sandbox.CodeDiskFull},
		"no memory for the shim":      {start, 500, "failed to start shim: fork/exec /usr/bin/containerd-shim-runc-v2: cannot allocate memory: unknown", sandbox.CodeOutOfMemory},
		"a limit that is too low":     {start, 500, oci + "container init was OOM-killed (memory limit too low?): unknown", sandbox.CodeOutOfMemory},
		"a missing image":             {create, 404, "No such image: img:1", sandbox.CodeImageMissing},
		"a taken name":                {create, 409, `Conflict. The container name "/agentpod-fake-x" is already in use by container "0a". You have to remove (or rename) that container to be able to reuse that name.`, sandbox.CodeNameTaken},
		"an unknown runtime class":    {create, 400, "unknown or invalid runtime name: runsc", sandbox.CodeEngineAway},
		"a file limit it cannot give": {start, 500, oci + "error during container init: error setting rlimits for ready process: error setting rlimit type 7: operation not permitted: unknown", sandbox.CodeBootFailed},
		"anything else at create":     {create, 500, "something with /var/lib/secret in it", sandbox.CodeEngineAway},
		"anything else at start":      {start, 500, "something with /var/lib/secret in it", sandbox.CodeBootFailed},
		// What a 20.10 answered while it, or its containerd, was killed: the first four were
		// seen, the others are what its parts say when they are closed.
		"a containerd that is gone":    {start, 500, `connection error: desc = "transport: Error while dialing dial unix /run/containerd/containerd.sock: connect: connection refused": unavailable`, sandbox.CodeEngineAway},
		"a containerd that is silent":  {start, 500, `connection error: desc = "transport: Error while dialing dial unix:///run/containerd/containerd.sock: timeout": unavailable`, sandbox.CodeEngineAway},
		"an engine that is going down": {start, 500, "transport is closing: unavailable", sandbox.CodeEngineAway},
		"the same, with labels":        {start, 500, "failed to retrieve labels: transport is closing: unavailable", sandbox.CodeEngineAway},
		"a call of its own, cut short": {create, 500, "context canceled", sandbox.CodeEngineAway},
		"a volume, cut short":          {volume, 500, "create home: context canceled", sandbox.CodeEngineAway},
		"its networks, closed":         {start, 500, "failed to update store for object type *libnetwork.endpoint: database not open", sandbox.CodeEngineAway},
		"its client, closed":           {start, 500, "grpc: the client connection is closing: unknown", sandbox.CodeEngineAway},
		"its shim, closed":             {start, 500, "failed to create shim: ttrpc: closed: unknown", sandbox.CodeEngineAway},
		"no addresses left":            {"GET /networks", 500, "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network", sandbox.CodeNoCapacity},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := serveFake(t, &fakeEngine{api: "1.41", replies: map[string]reply{tt.route: {status: tt.status, text: tt.text}}})
			ctx := testContext(t)
			_, err := r.Create(ctx, lifecycle.Spec{SandboxID: "x", Volume: "home"})
			if err == nil {
				_, err = r.Start(ctx, fakeID)
			}
			wantCode(t, err, tt.code)
			if strings.Contains(messageOf(err), "/var/lib") {
				t.Errorf("a caller is told of the host's paths: %s", messageOf(err))
			}
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("the log is not told the engine's words: %v", err)
			}
		})
	}
}

func TestAFailedCreateTakesItsNewVolumeBack(t *testing.T) {
	f := &fakeEngine{api: "1.41", replies: map[string]reply{
		"POST /containers/create": {status: 500, text: "no"},
		"DELETE /volumes/home":    {status: 500, text: "the test sees that it is asked for"},
	}}
	r := serveFake(t, f)
	if _, err := r.EnsureNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	count := func() int64 {
		before := f.calls.Load()
		_, err := r.Create(testContext(t), lifecycle.Spec{SandboxID: "x", Volume: "home"})
		wantCode(t, err, sandbox.CodeEngineAway)
		return f.calls.Load() - before
	}
	if got := count(); got != 4 { // inspect, create, create the container, remove
		t.Errorf("%d calls with a new volume", got)
	}
	f.replies["GET /volumes/home"] = reply{status: 200, text: `{"Name":"home","Labels":{"agentpod.installation":"fake"}}`}
	if got := count(); got != 2 { // inspect, create the container: what was there stays
		t.Errorf("%d calls with an old volume", got)
	}
}

func TestTheSameRuntimeWorksAfterTheEngineCameAndChanged(t *testing.T) {
	ctx := testContext(t)
	path := filepath.Join(socketDir(t), "engine.sock")
	r := fakeRuntime(t, "unix://"+path)
	_, err := r.Inspect(ctx, fakeID)
	wantCode(t, err, sandbox.CodeEngineAway)

	serve := func(f http.Handler) (stop func()) {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: f, ReadHeaderTimeout: deadline}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = srv.Serve(ln)
		}()
		return func() { _ = srv.Close(); <-done }
	}
	stop := serve(&fakeEngine{api: "1.41"})
	if _, err := r.Inspect(ctx, fakeID); err != nil {
		t.Fatal(err)
	}
	stop()
	_, err = r.Inspect(ctx, fakeID)
	wantCode(t, err, sandbox.CodeEngineAway)
	stop = serve(&fakeEngine{api: "1.41"})
	if _, err := r.Inspect(ctx, fakeID); err != nil {
		t.Fatalf("after a restart: %v", err)
	}
	stop()
	// An engine that no longer takes the version that was agreed on.
	upgraded := &fakeEngine{api: "1.52", replies: map[string]reply{}}
	stop = serve(refusing{upgraded, "/v1.41/"})
	defer stop()
	_, err = r.Inspect(ctx, fakeID)
	wantCode(t, err, sandbox.CodeEngineAway)
	if _, err := r.Inspect(ctx, fakeID); err != nil {
		t.Fatalf("after an upgrade: %v", err)
	}
}

func TestSettingsThatCannotWorkAreRefusedWithASentence(t *testing.T) {
	good := limits("a1", "i")
	tests := map[string]struct {
		change func(*Settings)
		want   string
	}{
		"no installation":        {func(s *Settings) { s.Installation = "" }, "installation id"},
		"a dash":                 {func(s *Settings) { s.Installation = "a-b" }, "installation id"},
		"no image":               {func(s *Settings) { s.Image = "" }, "image"},
		"too little memory":      {func(s *Settings) { s.Memory = 1 }, "memory"},
		"no memory":              {func(s *Settings) { s.Memory = 0 }, "memory"},
		"too little CPU":         {func(s *Settings) { s.CPUs = -1 }, "CPU"},
		"no CPU":                 {func(s *Settings) { s.CPUs = 0 }, "CPU"},
		"no pids limit":          {func(s *Settings) { s.Pids = 0 }, "processes"},
		"no file limit":          {func(s *Settings) { s.NoFile = 0 }, "open files"},
		"no /tmp":                {func(s *Settings) { s.TmpSize = 0 }, "/tmp"},
		"no /run":                {func(s *Settings) { s.RunSize = 0 }, "/run"},
		"no log":                 {func(s *Settings) { s.LogMaxSize = 0 }, "size of a log"},
		"no log files":           {func(s *Settings) { s.LogMaxFiles = 0 }, "number of log"},
		"a negative pids limit":  {func(s *Settings) { s.Pids = -1 }, "processes"},
		"a negative file limit":  {func(s *Settings) { s.NoFile = -1 }, "open files"},
		"a negative /tmp":        {func(s *Settings) { s.TmpSize = -1 }, "/tmp"},
		"a negative log":         {func(s *Settings) { s.LogMaxFiles = -1 }, "log"},
		"a negative timeout":     {func(s *Settings) { s.CallTimeout = -1 }, "timeout"},
		"an unknown reach":       {func(s *Settings) { s.Reach = "psychic" }, "psychic"},
		"an address over ssh":    {func(s *Settings) { s.Host = "ssh://me@there" }, "unix:///path"},
		"an address with secret": {func(s *Settings) { s.Host = "tcp://me:hunter2@there:1" }, "password"},
		"nonsense for address":   {func(s *Settings) { s.Host = "hunter2" }, "unix:///path"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			set := good
			tt.change(&set)
			_, err := New(set, testLog(t))
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v", err)
			}
		})
	}
	r, err := New(good, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.set.Network != "agentpod-a1" || r.set.Reach != ReachAuto || r.set.CallTimeout <= 0 || r.set.SlowTimeout <= 0 {
		t.Errorf("defaults: %+v", r.set)
	}
}

func TestWhetherAnEngineIsOnAnotherMachine(t *testing.T) {
	for host, want := range map[string]bool{
		"unix:///var/run/docker.sock": false,
		"tcp://127.0.0.1:2375":        false,
		"tcp://localhost:2375":        false,
		"tcp://[::1]:2375":            false,
		"tcp://192.0.2.7:2376":        true,
		"tcp://engine.example:2376":   true,
	} {
		if got := remote(host); got != want {
			t.Errorf("remote(%s) = %t", host, got)
		}
	}
}

// refusing is an engine that refuses a version, as one with a higher minimum does.
type refusing struct {
	*fakeEngine
	prefix string
}

func (f refusing) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !strings.HasPrefix(req.URL.Path, f.prefix) {
		f.fakeEngine.ServeHTTP(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = fmt.Fprint(w, `{"message":"client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade your client to a newer version"}`)
}
