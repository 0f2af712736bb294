package account

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAPasswordIsKnownByItsHashAlone(t *testing.T) {
	t.Parallel()
	h := newHasher(2)
	first, err := h.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if first == second || !strings.HasPrefix(first, "$argon2id$v=19$m=19456,t=2,p=1$") || strings.Contains(first, "horse") {
		t.Errorf("%s and %s", first, second)
	}
	for password, want := range map[string]bool{"correct horse": true, "Correct horse": false, "": false, "correct horse ": false, strings.Repeat("x", 60_000): false} {
		if got, err := h.verify(t.Context(), password, first); err != nil || got != want {
			t.Errorf("%.20q: %v, %v", password, got, err)
		}
	}
}

func TestADamagedHashIsRefused(t *testing.T) {
	t.Parallel()
	h := newHasher(1)
	for _, hashed := range []string{
		"", "plain", "$2b$10$abc", "$argon2id$v=19$m=19456,t=2,p=1$salt", "$argon2id$v=18$m=19456,t=2,p=1$c2FsdA$aGFzaA", "$argon2id$v=19$m=99999999,t=2,p=1$c2FsdA$aGFzaA",
		"$argon2id$v=19$m=19456,t=0,p=1$c2FsdA$aGFzaA", "$argon2id$v=19$m=19456,t=2,p=0$c2FsdA$aGFzaA", "$argon2id$v=19$m=x$c2FsdA$aGFzaA",
		"$argon2id$v=19$m=19456,t=2,p=1$!$aGFzaA", "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$!",
	} {
		if ok, err := h.verify(t.Context(), "x", hashed); ok || err == nil {
			t.Errorf("%q: %v, %v", hashed, ok, err)
		}
	}
}

func TestPasswordsAreCountedAsTheLoginClientDoes(t *testing.T) {
	t.Parallel()
	for password, want := range map[string]error{
		"1234567": ErrPasswordTooShort, "12345678": nil, "😀😀😀😀": nil, "😀😀😀x": ErrPasswordTooShort, "éééééééé": nil,
		strings.Repeat("x", 128): nil, strings.Repeat("x", 129): ErrPasswordTooLong, strings.Repeat("😀", 65): ErrPasswordTooLong,
	} {
		if err := CheckPassword(password); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", password, err, want)
		}
	}
}

func TestEmailAddressesAreCheckedAndLowered(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Ada@Example.COM": "ada@example.com", "admin@localhost.test": "admin@localhost.test", "o'neil+tag@mail.example.co": "o'neil+tag@mail.example.co",
		"nope": "", "": "", "@example.com": "", "a@": "", "a@b": "", "a@b@c.de": "", "a b@example.com": "", "Ada <ada@example.com>": "", ".a@example.com": "",
		"a..b@example.com": "", "a.@example.com": "", "a@-x.com": "", "a@example.com\r\nBcc: x@example.com": "", "a@exämple.com": "",
		strings.Repeat("a", 250) + "@example.com": "",
	} {
		got, err := NormalEmail(in)
		if got != want || (want == "") != errors.Is(err, ErrEmail) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestALimitLetsABurstThroughAndThenOneAtATime(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	l := newLimiter(3, time.Minute)
	for range 3 {
		if wait := l.take("a", now); wait != 0 {
			t.Fatalf("refused within the burst: %s", wait)
		}
	}
	if wait := l.take("a", now); wait != time.Minute {
		t.Errorf("wait %s after the burst", wait)
	}
	if wait := l.take("b", now); wait != 0 {
		t.Errorf("another key waits %s", wait)
	}
	if wait := l.take("a", now.Add(20*time.Second)); wait.Round(time.Second) != 40*time.Second {
		t.Errorf("wait %s", wait)
	}
	if wait := l.take("a", now.Add(time.Minute)); wait != 0 {
		t.Errorf("wait %s a minute later", wait)
	}
	if wait := l.take("a", now.Add(time.Minute)); wait == 0 {
		t.Error("two for one minute")
	}
	l.giveBack("a", now.Add(time.Minute))
	if wait := l.take("a", now.Add(time.Minute)); wait != 0 {
		t.Errorf("what was given back is not there: %s", wait)
	}
	if wait := l.take("a", now); wait == 0 { // the clock was set back
		t.Error("a clock that goes back gives more")
	}
}

func TestALimitHoldsWhoeverSendsHowManyKeys(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	l := newLimiter(5, time.Hour)
	var group sync.WaitGroup
	var passed [4]int
	for i := range passed {
		group.Go(func() {
			for n := range 50_000 {
				l.take(fmt.Sprintf("%d-%d", i, n), now)
				if n%10 == 0 && l.take("victim", now) == 0 {
					passed[i]++
				}
			}
		})
	}
	group.Wait()
	if all := passed[0] + passed[1] + passed[2] + passed[3]; all > 5 {
		t.Errorf("%d tries on one key, want 5 at most", all)
	}
	if len(l.buckets) != limiterBuckets {
		t.Errorf("%d buckets", len(l.buckets))
	}
}

func TestAddressesAreCountedByWhoHasThem(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "": "", "x": "x",
	} {
		if got := addressKey(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestSignaturesAreTheLoginServers(t *testing.T) {
	t.Parallel()
	s := &Service{settings: Settings{Secret: []byte("secret")}}
	// Made with: printf value | openssl dgst -sha256 -hmac secret -binary | base64
	const signed = "value.UOA+vmW+mLuL8RuiyJLVTAeayisNOwFidpxtdXolQ08="
	if got := s.Sign("value"); got != signed {
		t.Errorf("%s", got)
	}
	for text, want := range map[string]bool{
		s.Sign("value"): true, "value": false, "value.": false, "": false, ".": false, "other" + strings.TrimPrefix(s.Sign("value"), "value"): false,
		s.Sign("value") + "=": false, (&Service{settings: Settings{Secret: []byte("other")}}).Sign("value"): false,
	} {
		value, ok := s.Verify(text)
		if ok != want || ok != (value == "value") {
			t.Errorf("%q: %q, %v", text, value, ok)
		}
	}
}

func TestBadSettingsAreRefused(t *testing.T) {
	t.Parallel()
	good := Settings{Secret: make([]byte, 32), PerAccount: DefaultPerAccount(), PerAddress: DefaultPerAddress()}
	if _, err := New(t.Context(), good, nil); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Settings){
		"a short secret":       func(s *Settings) { s.Secret = make([]byte, 31) },
		"no limit by account":  func(s *Settings) { s.PerAccount = Limit{} },
		"no limit by address":  func(s *Settings) { s.PerAddress = Limit{} },
		"a limit without time": func(s *Settings) { s.PerAddress.Every = 0 },
	} {
		bad := good
		change(&bad)
		if _, err := New(t.Context(), bad, nil); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestWhatIsKeptOfAHeaderIsPlainAndShort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		most int
		want string
	}{
		{"a\r\nb\x1b[0m", 100, "ab[0m"},
		{"\xff\xfeok", 100, "ok"},
		{"ééé", 5, "éé"},
		{"", 5, ""},
	} {
		if got := cut(c.in, c.most); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}
