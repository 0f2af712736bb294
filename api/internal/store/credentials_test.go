package store_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/credential"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
)

func TestCredentialsAreReplacedDefaultedResealedAndDeleted(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		c, ctx := s.Credentials(), t.Context()
		addUser(t, s, "u1")
		addUser(t, s, "u2")
		save := func(id, user, provider, sealed, key string) {
			t.Helper()
			if err := c.Save(ctx, credential.Credential{ID: id, UserID: user, ProviderID: provider, Sealed: sealed, KeyID: key, CreatedAt: noon(), UpdatedAt: noon()}); err != nil {
				t.Fatal(err)
			}
		}
		save("c1", "u1", "openai", "one", "k1")
		save("c2", "u1", "anthropic", "two", "k1")
		save("c3", "u2", "openai", "three", "k2")
		if err := c.SetDefault(ctx, "u1", "openai", noon()); err != nil {
			t.Fatal(err)
		}
		save("c9", "u1", "openai", "one, replaced", "k1")
		utc := kept(noon())
		list, err := c.List(ctx, "u1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the list", []credential.Credential{
			{ID: "c2", UserID: "u1", ProviderID: "anthropic", Sealed: "two", KeyID: "k1", CreatedAt: utc, UpdatedAt: utc},
			{ID: "c1", UserID: "u1", ProviderID: "openai", Sealed: "one, replaced", KeyID: "k1", IsDefault: true, CreatedAt: utc, UpdatedAt: utc},
		}, list)

		// Whoever sets a default at once with others, there is one at the end.
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				if err := c.SetDefault(ctx, "u1", []string{"openai", "anthropic"}[i%2], noon()); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		want(t, c.SetDefault(ctx, "u1", "groq", noon()), credential.ErrNotFound)
		if list, err = c.List(ctx, "u1"); err != nil || list[0].IsDefault == list[1].IsDefault {
			t.Errorf("%+v, %v", list, err)
		}

		old, err := c.SealedOtherwise(ctx, "k2", 10)
		if err != nil || len(old) != 2 {
			t.Fatalf("%+v, %v", old, err)
		}
		if done, err := c.Reseal(ctx, old[0], "again", "k2", noon()); err != nil || !done {
			t.Errorf("%v, %v", done, err)
		}
		if done, err := c.Reseal(ctx, old[0], "late", "k2", noon()); err != nil || done {
			t.Errorf("what changed meanwhile was replaced: %v, %v", done, err)
		}
		if err := c.Delete(ctx, "u1", "openai"); err != nil {
			t.Fatal(err)
		}
		want(t, c.Delete(ctx, "u1", "openai"), credential.ErrNotFound)
	})
}

func TestConfigurationsAndFilesAreKept(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		c, ctx := s.Configs(), t.Context()
		addUser(t, s, "u1")
		got, err := c.Get(ctx, "u1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "what nobody saved", credential.OpenCode{UserID: "u1", Settings: "{}"}, got)
		if err := c.SaveAgentsMD(ctx, "u1", "# rules", noon()); err != nil {
			t.Fatal(err)
		}
		if err := c.SaveSettings(ctx, "u1", `{"theme":"x"}`, noon().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		got, err = c.Get(ctx, "u1")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the configuration", credential.OpenCode{
			UserID: "u1", Settings: `{"theme":"x"}`, AgentsMD: "# rules", CreatedAt: kept(noon()), UpdatedAt: kept(noon().Add(time.Hour)),
		}, got)

		file := credential.File{UserID: "u1", Type: "agent", Name: "b", Extension: "md", Content: "one", CreatedAt: noon(), UpdatedAt: noon()}
		other := file
		other.Name = "a"
		for _, f := range []credential.File{file, other} {
			if err := c.SaveFile(ctx, f); err != nil {
				t.Fatal(err)
			}
		}
		file.Content, file.Extension, file.CreatedAt = strings.Repeat("two ", 1000), "ts", noon().Add(time.Hour)
		if err := c.SaveFile(ctx, file); err != nil {
			t.Fatal(err)
		}
		file.CreatedAt, file.UpdatedAt = kept(noon()), kept(noon())
		one, err := c.File(ctx, "u1", "agent", "b")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the file", file, one)
		files, err := c.Files(ctx, "u1", 10)
		if err != nil || len(files) != 2 || files[0].Name != "a" {
			t.Errorf("%+v, %v", files, err)
		}
		if err := c.DeleteFile(ctx, "u1", "agent", "b"); err != nil {
			t.Fatal(err)
		}
		want(t, c.DeleteFile(ctx, "u1", "agent", "b"), credential.ErrNotFound)
		_, err = c.File(ctx, "u1", "agent", "b")
		want(t, err, credential.ErrNotFound)
	})
}
