package store_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

const secret = "sk-a-secret-key-of-the-tests"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ring is a keyring of keys that are all one byte.
func ring(t testing.TB, current byte, former ...byte) *seal.Keyring {
	t.Helper()
	fill := func(b byte) [seal.KeySize]byte { return [seal.KeySize]byte(bytes.Repeat([]byte{b}, seal.KeySize)) }
	var before [][seal.KeySize]byte
	for _, b := range former {
		before = append(before, fill(b))
	}
	keys, err := seal.NewKeyring(fill(current), before...)
	must(t, err)
	return keys
}

// credentialWorld is a service on a store, with the users ada and bob.
type credentialWorld struct {
	*credential.Service
	store *store.Store
	log   *bytes.Buffer
}

func newCredentialWorld(t testing.TB, s *store.Store, keys *seal.Keyring) credentialWorld {
	t.Helper()
	for _, id := range []string{"ada", "bob"} {
		addUser(t, s, id)
	}
	return anotherService(t, s, keys)
}

// anotherService is another service on the same store.
func anotherService(t testing.TB, s *store.Store, keys *seal.Keyring) credentialWorld {
	t.Helper()
	log := &bytes.Buffer{}
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	catalogue, err := credential.NewCatalogue("", nil, logger)
	must(t, err)
	now := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	return credentialWorld{
		Service: credential.New(credential.Settings{Keys: keys, Catalogue: catalogue, Log: logger, Now: now}, s.Credentials(), s.Configs()),
		store:   s, log: log,
	}
}

func (w credentialWorld) configure(t testing.TB, userID, providerID, key string) {
	t.Helper()
	_, err := w.Configure(t.Context(), userID, providerID, key)
	must(t, err)
}

func (w credentialWorld) config(t testing.TB, userID string) (string, string) {
	t.Helper()
	config, hash, err := w.Config(t.Context(), userID)
	must(t, err)
	return string(config), hash
}

func TestAProviderIsConfiguredDefaultedAndDeleted(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w, ctx := newCredentialWorld(t, s, ring(t, 1)), t.Context()
		if _, err := w.SetDefault(ctx, "ada", "openai"); !sandbox.HasCode(err, sandbox.CodeProviderMissing) {
			t.Errorf("a default that is not configured: %v", err)
		}
		if _, err := w.Delete(ctx, "ada", "openai"); !sandbox.HasCode(err, sandbox.CodeProviderNotFound) {
			t.Errorf("deleting what is not configured: %v", err)
		}
		w.configure(t, "ada", "openai", "first")
		w.configure(t, "ada", "openai", " "+secret+"\n")
		w.configure(t, "ada", "anthropic", "sk-other")
		if _, found, err := w.Default(ctx, "ada"); found || err != nil {
			t.Errorf("there is a default: %v", err)
		}
		p, err := w.SetDefault(ctx, "ada", "openai")
		if err != nil || !p.Configured || !p.Default {
			t.Errorf("%+v, %v", p, err)
		}
		if p, found, err := w.Default(ctx, "ada"); err != nil || !found || p.ID != "openai" {
			t.Errorf("the default: %+v, %v", p, err)
		}
		configured, err := w.Configured(ctx, "ada")
		if err != nil || len(configured) != 2 || configured[0].ID != "anthropic" || configured[1].ID != "openai" {
			t.Errorf("%+v, %v", configured, err)
		}
		list, err := w.List(ctx, "ada", true)
		must(t, err)
		got := map[string]bool{}
		for _, p := range list {
			got[p.ID] = p.Configured
		}
		if len(list) < 12 || !got["openai"] || !got["anthropic"] || got["google"] {
			t.Errorf("%v", got)
		}
		if others, err := w.Configured(ctx, "bob"); err != nil || len(others) != 0 {
			t.Errorf("another's: %+v, %v", others, err)
		}
		if _, err := w.Delete(ctx, "bob", "openai"); !sandbox.HasCode(err, sandbox.CodeProviderNotFound) {
			t.Errorf("deleting another's: %v", err)
		}
		config, _ := w.config(t, "ada")
		want := `{"auth":{"anthropic":{"type":"api","key":"sk-other"},"openai":{"type":"api","key":"` + secret + `"}},"model":"openai/` + p.DefaultModel + `"}`
		if config != want || p.DefaultModel == "" {
			t.Errorf("config %s, want %s", config, want)
		}
		_, err = w.Delete(ctx, "ada", "openai")
		must(t, err)
		if config, _ := w.config(t, "ada"); strings.Contains(config, secret) || strings.Contains(config, "model") {
			t.Errorf("after it was deleted: %s", config)
		}
	})
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	t.Parallel()
	w := newCredentialWorld(t, storetest.Open(t, storetest.FileURL(t)), ring(t, 1))
	for name, c := range map[string]struct {
		provider, key string
		code          sandbox.Code
	}{
		"the longest":            {"openai", strings.Repeat("k", credential.MaxKey), ""},
		"one that is longer":     {"openai", strings.Repeat("k", credential.MaxKey+1), sandbox.CodeInvalidRequest},
		"none":                   {"openai", "", sandbox.CodeInvalidRequest},
		"spaces":                 {"openai", " \n ", sandbox.CodeInvalidRequest},
		"two lines":              {"openai", "a\nb", sandbox.CodeInvalidRequest},
		"a NUL":                  {"openai", "a\x00b", sandbox.CodeInvalidRequest},
		"an unknown provider":    {"nobody", "key", sandbox.CodeProviderNotFound},
		"a provider that is not": {"../x\x00", "key", sandbox.CodeProviderNotFound},
		"one without keys":       {"github-copilot", "key", sandbox.CodeInvalidRequest},
	} {
		_, err := w.Configure(t.Context(), "ada", c.provider, c.key)
		if (c.code == "") != (err == nil) || err != nil && !sandbox.HasCode(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && len(c.key) > 2 && c.key != "key" && strings.Contains(err.Error(), c.key) {
			t.Errorf("%s: the key is in %v", name, err)
		}
	}
}

// only returns a user's only credential.
func (w credentialWorld) only(t testing.TB, userID string) credential.Credential {
	t.Helper()
	rows, err := w.store.Credentials().List(t.Context(), userID)
	must(t, err)
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
	return rows[0]
}

func TestAKeyOpensWhereItWasSealedAlone(t *testing.T) {
	t.Parallel()
	flipped := func(c credential.Credential) credential.Credential {
		raw, err := base64.StdEncoding.DecodeString(c.Sealed)
		must(t, err)
		raw[len(raw)/2] ^= 1
		c.Sealed = base64.StdEncoding.EncodeToString(raw)
		return c
	}
	for name, c := range map[string]struct {
		change func(credential.Credential) credential.Credential
		key    byte
		opens  bool
	}{
		"as it was": {func(c credential.Credential) credential.Credential { return c }, 1, true},
		"moved to another user": {func(c credential.Credential) credential.Credential {
			c.ID, c.UserID = "moved", "bob"
			return c
		}, 1, false},
		"moved to another provider": {func(c credential.Credential) credential.Credential {
			c.ID, c.UserID, c.ProviderID = "moved", "ada", "groq"
			return c
		}, 1, false},
		"with a bit flipped": {flipped, 1, false},
		"no base64": {func(c credential.Credential) credential.Credential {
			c.Sealed = "%" + c.Sealed
			return c
		}, 1, false},
		"with another key": {func(c credential.Credential) credential.Credential { return c }, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newCredentialWorld(t, storetest.Open(t, storetest.FileURL(t)), ring(t, 1))
			w.configure(t, "ada", "openai", secret)
			row := w.only(t, "ada")
			if strings.Contains(row.Sealed, base64.StdEncoding.EncodeToString([]byte(secret))) || strings.Contains(row.Sealed, secret) {
				t.Error("it is not sealed")
			}
			changed := c.change(row)
			must(t, w.store.Credentials().Save(t.Context(), changed))
			config, _, err := anotherService(t, w.store, ring(t, c.key)).Config(t.Context(), changed.UserID)
			if c.opens != strings.Contains(string(config), secret) || !c.opens && !sandbox.HasCode(err, sandbox.CodeProviderMissing) {
				t.Errorf("%s, %v", config, err)
			}
		})
	}
}

func TestTheSameKeyIsSealedDifferentlyEachTime(t *testing.T) {
	t.Parallel()
	w := newCredentialWorld(t, storetest.Open(t, storetest.FileURL(t)), ring(t, 1))
	w.configure(t, "ada", "openai", secret)
	one := w.only(t, "ada").Sealed
	w.configure(t, "ada", "openai", secret)
	if w.only(t, "ada").Sealed == one {
		t.Error("whoever reads rows can tell which keys are equal")
	}
}

// interrupted fails after some resealings, as a process does that is ended.
type interrupted struct {
	credential.Credentials
	left int
}

var errInterrupted = errors.New("interrupted")

func (i *interrupted) Reseal(ctx context.Context, was credential.Credential, sealed, keyID string, now time.Time) (bool, error) {
	i.left--
	if i.left < 0 {
		return false, errInterrupted
	}
	return i.Credentials.Reseal(ctx, was, sealed, keyID, now)
}

// many is more than a rotation reads at once.
const many = 130

// fill gives ada a key for each of many providers.
func (w credentialWorld) fill(t testing.TB, key string) {
	t.Helper()
	w.configure(t, "ada", "openai", key)
	row := w.only(t, "ada")
	for i := range many {
		row.ID, row.ProviderID = fmt.Sprintf("row%d", i), fmt.Sprintf("p%d", i)
		must(t, w.store.Credentials().Save(t.Context(), row))
	}
	_, err := w.Delete(t.Context(), "ada", "openai")
	must(t, err)
}

func TestADamagedRowDoesNotStopARotation(t *testing.T) {
	t.Parallel()
	w := newCredentialWorld(t, storetest.Open(t, storetest.FileURL(t)), ring(t, 1))
	w.fill(t, secret) // none of them opens: they were copied
	w.configure(t, "bob", "openai", secret)
	next := anotherService(t, w.store, ring(t, 2, 1))
	must(t, next.Rotate(t.Context()))
	if config, _ := anotherService(t, w.store, ring(t, 2)).config(t, "bob"); !strings.Contains(config, secret) {
		t.Errorf("%s", config)
	}
	if n := strings.Count(next.log.String(), "cannot be opened"); n != many {
		t.Errorf("%d of %d were reported", n, many)
	}
}

func TestKeysAreRotatedWhateverInterruptsIt(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w, ctx := newCredentialWorld(t, s, ring(t, 1)), t.Context()
		providers := []string{"openai", "anthropic", "google", "groq", "mistral"}
		for _, user := range []string{"ada", "bob"} {
			for _, p := range providers {
				w.configure(t, user, p, secret+user+p)
			}
		}
		before, hash := w.config(t, "ada")
		for left := range 4 {
			cut := &interrupted{s.Credentials(), left}
			if err := credential.New(credential.Settings{Keys: ring(t, 2, 1)}, cut, s.Configs()).Rotate(ctx); !errors.Is(err, errInterrupted) {
				t.Fatalf("after %d: %v", left, err)
			}
			if now, _ := anotherService(t, s, ring(t, 2, 1)).config(t, "ada"); now != before {
				t.Fatalf("half way the config is %s", now)
			}
		}
		if err := anotherService(t, s, ring(t, 2)).Rotate(ctx); err == nil || !strings.Contains(err.Error(), ring(t, 1).KeyID()) {
			t.Errorf("without the former key: %v", err)
		}
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				if err := anotherService(t, s, ring(t, 2, 1)).Rotate(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		rotated := anotherService(t, s, ring(t, 2))
		must(t, rotated.Rotate(ctx))
		now, changed := rotated.config(t, "ada")
		if now != before || changed == hash {
			t.Errorf("%s, want %s", now, before)
		}
		if bobs, _ := rotated.config(t, "bob"); strings.Count(bobs, secret+"bob") != len(providers) {
			t.Errorf("%s", bobs)
		}
		ended, stop := context.WithCancel(ctx)
		stop()
		if err := anotherService(t, s, ring(t, 3, 2)).Rotate(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("a rotation goes on after its end: %v", err)
		}
	})
}

func TestWhoeverGivesANewKeyDuringARotationWins(t *testing.T) {
	t.Parallel()
	w := newCredentialWorld(t, storetest.Open(t, storetest.FileURL(t)), ring(t, 1))
	w.configure(t, "ada", "openai", "the old key")
	racing := &racer{Credentials: w.store.Credentials(), meanwhile: func() { w.configure(t, "ada", "openai", secret) }}
	must(t, credential.New(credential.Settings{Keys: ring(t, 2, 1)}, racing, w.store.Configs()).Rotate(t.Context()))
	config, _ := anotherService(t, w.store, ring(t, 2)).config(t, "ada")
	if !strings.Contains(config, secret) {
		t.Errorf("%s", config)
	}
}

// racer does something once before the first resealing.
type racer struct {
	credential.Credentials
	once      sync.Once
	meanwhile func()
}

func (r *racer) Reseal(ctx context.Context, was credential.Credential, sealed, keyID string, now time.Time) (bool, error) {
	r.once.Do(r.meanwhile)
	return r.Credentials.Reseal(ctx, was, sealed, keyID, now)
}

func TestNoKeyIsLogged(t *testing.T) {
	t.Parallel()
	w := newCredentialWorld(t, storetest.Open(t, storetest.FileURL(t)), ring(t, 1))
	w.configure(t, "ada", "openai", secret)
	w.config(t, "ada")
	row := w.only(t, "ada")
	row.ID, row.UserID = "moved", "bob"
	must(t, w.store.Credentials().Save(t.Context(), row))
	next := anotherService(t, w.store, ring(t, 2, 1))
	must(t, next.Rotate(t.Context()))
	_, _, err := next.Config(t.Context(), "bob")
	for _, text := range []string{w.log.String(), next.log.String(), fmt.Sprintf("%v %+v", err, err)} {
		if strings.Contains(text, secret) || strings.Contains(text, row.Sealed) {
			t.Errorf("%s", text)
		}
	}
	if next.log.String() == "" {
		t.Error("nothing is in the log")
	}
}

func TestAConfigIsAllThatAUserSaved(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w, ctx := newCredentialWorld(t, s, ring(t, 1)), t.Context()
		if config, hash, err := w.Config(ctx, "ada"); config != nil || hash != "" || err != nil {
			t.Errorf("nothing is %s, %q, %v", config, hash, err)
		}
		const settings = `{"$schema":"https://opencode.ai/config.json","provider":{"mine":{"npm":"@ai-sdk/openai-compatible","options":{"baseURL":"https://x.test/v1?a=1","apiKey":"own","n":12345678901234567890},"models":{"m":{"name":"M"}}}},"theme":null}`
		_, err := w.SaveSettings(ctx, "ada", []byte(" "+settings+"\n"))
		must(t, err)
		must(t, w.SaveAgentsMD(ctx, "ada", "# Rules"))
		for _, f := range []credential.File{
			{UserID: "ada", Type: "tool", Name: "t1", Content: "export {}"},
			{UserID: "ada", Type: "agent", Name: "a1", Content: "old"},
			{UserID: "ada", Type: "agent", Name: "a1", Content: "Be kind."},
			{UserID: "ada", Type: "plugin", Name: "p1", Extension: "js", Content: ""},
		} {
			_, err := w.SaveFile(ctx, f)
			must(t, err)
		}
		w.configure(t, "ada", "groq", secret)
		_, err = w.SetDefault(ctx, "ada", "groq")
		must(t, err)
		config, hash := w.config(t, "ada")
		want := `{"$schema":"https://opencode.ai/config.json","agents_md":"# Rules","auth":{"groq":{"type":"api","key":"` + secret + `"}},` +
			`"files":[{"type":"agent","name":"a1","extension":"md","content":"Be kind."},{"type":"plugin","name":"p1","extension":"js","content":""},{"type":"tool","name":"t1","extension":"ts","content":"export {}"}],` +
			`"model":"groq/openai/gpt-oss-120b",` + settings[len(`{"$schema":"https://opencode.ai/config.json",`):]
		if diff := cmp.Diff(want, config); diff != "" {
			t.Error(diff)
		}
		same, sameHash := w.config(t, "ada")
		if same != config || sameHash != hash || len(hash) != 64 {
			t.Errorf("the hash is %q and then %q", hash, sameHash)
		}
		w.configure(t, "ada", "groq", secret+"2")
		if _, other := w.config(t, "ada"); other == hash {
			t.Error("the hash does not tell another key")
		}
		for setting, model := range map[string]string{`"a/b"`: `"a/b"`, `""`: `"groq/openai/gpt-oss-120b"`, `null`: `"groq/openai/gpt-oss-120b"`} {
			_, err := w.SaveSettings(ctx, "ada", []byte(`{"model":`+setting+`}`))
			must(t, err)
			if config, _ := w.config(t, "ada"); !strings.Contains(config, `"model":`+model) {
				t.Errorf("model %s: %s", setting, config)
			}
		}
		if config, _ := w.config(t, "bob"); config != "" {
			t.Errorf("another's config is %s", config)
		}
	})
}

func TestSettingsThatNoSandboxTakesAreRefused(t *testing.T) {
	t.Parallel()
	w := newCredentialWorld(t, storetest.Open(t, storetest.FileURL(t)), ring(t, 1))
	nested := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	for name, c := range map[string]struct {
		settings string
		code     sandbox.Code
	}{
		"none":                      {`{}`, ""},
		"as deep as may be":         {nested(sandbox.MaxDepth), ""},
		"deeper":                    {nested(sandbox.MaxDepth + 1), sandbox.CodeInvalidRequest},
		"the longest":               {`{"a":"` + strings.Repeat("x", credential.MaxSettings-8) + `"}`, ""},
		"longer":                    {`{"a":"` + strings.Repeat("x", credential.MaxSettings-7) + `"}`, sandbox.CodeTooLarge},
		"a list":                    {`[]`, sandbox.CodeInvalidRequest},
		"null":                      {`null`, sandbox.CodeInvalidRequest},
		"no JSON":                   {`{"a"`, sandbox.CodeInvalidRequest},
		"nothing":                   {``, sandbox.CodeInvalidRequest},
		"bytes that are no text":    {"{\"a\":\"\xff\"}", sandbox.CodeInvalidRequest},
		"credentials":               {`{"auth":{}}`, sandbox.CodeInvalidRequest},
		"files":                     {`{"files":[]}`, sandbox.CodeInvalidRequest},
		"AGENTS.md":                 {`{"agents_md":"x"}`, sandbox.CodeInvalidRequest},
		"an escaped NUL is allowed": {`{"a":"\u0000"}`, ""},
	} {
		_, err := w.SaveSettings(t.Context(), "ada", []byte(c.settings))
		if (c.code == "") != (err == nil) || err != nil && !sandbox.HasCode(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilesThatNoSandboxTakesAreRefused(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w, ctx := newCredentialWorld(t, s, ring(t, 1)), t.Context()
		for name, c := range map[string]struct {
			file credential.File
			code sandbox.Code
		}{
			"the longest":          {credential.File{Type: "agent", Name: "a", Content: strings.Repeat("x", credential.MaxContent)}, ""},
			"longer":               {credential.File{Type: "agent", Name: "b", Content: strings.Repeat("x", credential.MaxContent+1)}, sandbox.CodeTooLarge},
			"a NUL":                {credential.File{Type: "agent", Name: "c", Content: "\x00"}, sandbox.CodeInvalidRequest},
			"another type":         {credential.File{Type: "skill", Name: "d"}, sandbox.CodeInvalidRequest},
			"an agent in a script": {credential.File{Type: "agent", Name: "e", Extension: "ts"}, sandbox.CodeInvalidRequest},
			"a tool in a text":     {credential.File{Type: "tool", Name: "f", Extension: "md"}, sandbox.CodeInvalidRequest},
			"a path":               {credential.File{Type: "tool", Name: "../g"}, sandbox.CodeInvalidRequest},
			"dots":                 {credential.File{Type: "tool", Name: "g..g"}, sandbox.CodeInvalidRequest},
			"no name":              {credential.File{Type: "tool"}, sandbox.CodeInvalidRequest},
			"bytes that are none":  {credential.File{Type: "tool", Name: "a\xff"}, sandbox.CodeInvalidRequest},
		} {
			c.file.UserID = "ada"
			_, err := w.SaveFile(ctx, c.file)
			if (c.code == "") != (err == nil) || err != nil && !sandbox.HasCode(err, c.code) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := w.SaveAgentsMD(ctx, "ada", strings.Repeat("x", credential.MaxContent+1)); !sandbox.HasCode(err, sandbox.CodeTooLarge) {
			t.Errorf("a long AGENTS.md: %v", err)
		}
		if _, err := w.File(ctx, "bob", "agent", "a"); !sandbox.HasCode(err, sandbox.CodeFileNotFound) {
			t.Errorf("another's file: %v", err)
		}
		if err := w.DeleteFile(ctx, "bob", "agent", "a"); !sandbox.HasCode(err, sandbox.CodeFileNotFound) {
			t.Errorf("deleting another's file: %v", err)
		}
		must(t, w.DeleteFile(ctx, "ada", "agent", "a"))
		for i := range credential.MaxFiles {
			_, err := w.SaveFile(ctx, credential.File{UserID: "ada", Type: "tool", Name: fmt.Sprintf("t%d", i), Content: "x"})
			must(t, err)
		}
		if _, err := w.SaveFile(ctx, credential.File{UserID: "ada", Type: "tool", Name: "more"}); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
			t.Errorf("one more: %v", err)
		}
		full := credential.MaxFilesTotal/credential.MaxContent - 1
		for i := range full + 1 {
			_, err := w.SaveFile(ctx, credential.File{UserID: "ada", Type: "tool", Name: fmt.Sprintf("t%d", i), Content: strings.Repeat("x", credential.MaxContent)})
			if (i < full) != (err == nil) || err != nil && !sandbox.HasCode(err, sandbox.CodeTooLarge) {
				t.Errorf("number %d of large ones: %v", i, err)
			}
		}
	})
}
