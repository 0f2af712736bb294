package docker
import ("testing";"os";"fmt";"context";"time";"github.com/agentpod/agentpod/gateway/internal/lifecycle")
func TestZFull(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := create(t, r, specOf(r, "pre"))
	f, _ := os.Create("/tmp/dk2/fill")
	b := make([]byte, 4096); n := 0
	for { if _, err := f.Write(b); err != nil { break }; n++ }
	f.Close()
	fmt.Println("filled", n)
	_, err := r.Start(ctx, c.ID); fmt.Println("START", err)
	_, err = r.Create(ctx, specOf(r, "post")); fmt.Println("CREATE", err)
	sp := specOf(r, "post2"); sp.Volume = specOf(r, "pre").Volume
	_, err = r.Create(ctx, sp); fmt.Println("CREATE2", err)
	fmt.Println(r.Volumes(ctx))
	os.Remove("/tmp/dk2/fill")
	_ = context.Background
}
func TestZMem(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t, func(s *Settings){ s.Memory = 6 << 20 })
	for i := range 3 {
	c := create(t, r, specOf(r, fmt.Sprint("m", i)))
	_, err := r.Start(ctx, c.ID); fmt.Println("START", err)
	}
	r = newRuntime(t, func(s *Settings){ s.Memory = 512 << 10 })
	_ = time.Second
	_ = lifecycle.ErrNoContainer
}
