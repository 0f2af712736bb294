package workspace

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

// smallPacks make a little tree have many packs and large files.
func smallPacks() snapshot.Settings {
	return snapshot.Settings{PackSize: 64 << 10, SmallFile: 16 << 10}
}

// roundTrip grows a random home and changes it again and again. After every
// change what a snapshot restores elsewhere is identical, and so in the end is
// what each snapshot does that is kept.
func roundTrip(t *testing.T, s store.Store, settings snapshot.Settings, seed uint64, rounds int) {
	t.Helper()
	t.Logf("the seed is %d", seed)
	k, ref, source := newKeeper(t, s, settings), refTo("box", "i1"), newBox(t)
	mustBegin(t, k, ref)
	g := newGardener(t, source.home, seed)
	g.plant(80)
	pictures := map[string]map[string]seen{}
	entries := 0
	for round := range rounds {
		if round > 0 {
			g.tend(30)
		}
		before := picture(t, source.home)
		taken := mustSnapshot(t, k, ref, source)
		want := picture(t, source.home)
		wantSame(t, before, want) // what was opened up is put back
		if n, size := files(want); taken.Files != n || taken.Bytes != size {
			t.Errorf("round %d: the snapshot says %d files of %d bytes, want %d of %d", round, taken.Files, taken.Bytes, n, size)
		}
		wantRestored(t, k, ref, "", want)
		if t.Failed() {
			t.Fatalf("with the seed %d in round %d", seed, round)
		}
		pictures[taken.ID] = want
		entries += len(want)
	}
	t.Logf("%d entries in %d rounds", entries, rounds)
	kept, err := k.Snapshots(t.Context(), ref)
	if err != nil || len(kept) != min(rounds, 3) {
		t.Fatalf("%d snapshots are kept: %v", len(kept), err)
	}
	for _, one := range kept {
		wantRestored(t, k, ref, one.ID, pictures[one.ID])
	}
}

// wantRestored restores a snapshot into a new sandbox, and compares.
func wantRestored(t *testing.T, k *Keeper, ref lifecycle.Ref, id string, want map[string]seen) {
	t.Helper()
	target := newBox(t)
	state, err := k.Restore(t.Context(), ref, id, lifecycle.PartState, target.Client, nil)
	if err != nil {
		t.Fatal(err)
	}
	if early := below(picture(t, target.home), workspaceFolder); len(early) != 0 {
		t.Errorf("with the state came %d entries of the workspace", len(early))
	}
	rest, err := k.Restore(t.Context(), ref, id, lifecycle.PartWorkspace, target.Client, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, want, picture(t, target.home))
	if n, _ := files(want); state+rest != n {
		t.Errorf("%d files of the state and %d of the workspace were restored, want %d", state, rest, n)
	}
}

func TestRandomHomesComeBackIdenticalAfterEveryChange(t *testing.T) {
	for _, c := range []struct {
		seed     uint64
		settings snapshot.Settings
	}{{1, smallPacks()}, {2, smallPacks()}, {3, snapshot.Settings{}}} {
		t.Run(fmt.Sprintf("with the seed %d", c.seed), func(t *testing.T) {
			roundTrip(t, directory(t, t.TempDir()), c.settings, c.seed, 5)
		})
	}
}

func TestARandomHomeComesBackIdenticalFromS3(t *testing.T) {
	roundTrip(t, s3(t, storetest.StartServer(t, storetest.ServerOptions{})), smallPacks(), 4, 3)
}

func s3(t *testing.T, server *storetest.Server) store.Store {
	t.Helper()
	bucket, err := store.NewS3(server.Settings())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bucket.Close() })
	return store.NewRetrier(bucket, store.Policy{})
}

func TestEveryKindOfEntryComesBack(t *testing.T) {
	k, ref, source := newKeeper(t, directory(t, t.TempDir()), snapshot.Settings{}), refTo("box", "i1"), newBox(t)
	mustBegin(t, k, ref)
	g := newGardener(t, source.home, 0)
	ancient := unix.Timespec{Sec: -1_000_000_000, Nsec: 1} // 1938, and a nanosecond
	g.must(os.Mkdir(filepath.Join(source.home, "workspace", "empty folder"), 0o700))
	for name, target := range map[string]string{"loop a": "loop b", "loop b": "loop a", "self": "self", "dangling": "/none/at all", "out": "../../../../etc"} {
		path := filepath.Join(source.home, "workspace", name)
		g.must(os.Symlink(target, path))
		own(t, path)
		g.touch(path, ancient)
	}
	for mode := uint32(0); mode <= 0o7777; mode += 0o111 {
		g.file(filepath.Join(source.home, fmt.Sprintf("mode %o", mode)), []byte("content"), mode, ancient)
	}
	for _, name := range []string{"new\nline", `"quo'ted"`, "\xff\xfe", " ", "-rf", `\`} {
		source.write(t, ".config/"+name+"/file", "content")
	}
	source.write(t, "workspace/nothing in it", "")
	source.write(t, "workspace/twice", "one file of two names")
	g.must(os.Link(filepath.Join(source.home, "workspace", "twice"), filepath.Join(source.home, "linked")))
	source.write(t, "workspace/closed/to/everybody", "content")
	for _, name := range []string{"closed/to/everybody", "closed/to", "closed"} {
		g.must(os.Chmod(filepath.Join(source.home, "workspace", name), 0))
	}
	deepFolder(t, filepath.Join(source.home, "workspace"), 40)
	own(t, filepath.Join(source.home, "workspace", "empty folder"))

	mustSnapshot(t, k, ref, source)
	want := picture(t, source.home)
	longest := 0
	for path := range want {
		longest = max(longest, len(path))
	}
	if longest < unix.PathMax || want["workspace/closed"].Mode != 0 {
		t.Errorf("the home is not what was meant: a path of %d bytes, %+v", longest, want["workspace/closed"])
	}
	wantRestored(t, k, ref, "", want)
}

// deepFolder makes folders in each other, each with a name of 200 bytes.
func deepFolder(t *testing.T, folder string, depth int) {
	t.Helper()
	fd, err := unix.Open(folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 200)
	for range depth {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			if err := unix.Fchownat(fd, name, boxUser, boxUser, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Fatal(err)
			}
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = next
	}
	_ = unix.Close(fd)
}

func TestAnEditOfTheSameSizeInTheSameSecondIsSeen(t *testing.T) {
	k, ref, source := newKeeper(t, directory(t, t.TempDir()), snapshot.Settings{}), refTo("box", "i1"), newBox(t)
	mustBegin(t, k, ref)
	source.write(t, "workspace/file", "version 0")
	at := unix.Timespec{Sec: 1_700_000_000}
	g := newGardener(t, source.home, 0)
	for version := range 10 {
		path := filepath.Join(source.home, "workspace", "file")
		g.must(os.WriteFile(path, fmt.Appendf(nil, "version %d", version), 0o600))
		g.touch(path, at)
		mustSnapshot(t, k, ref, source)
		target := newBox(t)
		if _, err := restore(t, k, ref, "", target); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(filepath.Join(target.home, "workspace", "file"))
		if err != nil || string(raw) != fmt.Sprintf("version %d", version) {
			t.Errorf("version %d came back as %q, %v", version, raw, err)
		}
	}
}

func TestAnUnchangedHomeIsTheSameSnapshot(t *testing.T) {
	s := directory(t, t.TempDir())
	// A clock that is behind: every file was changed long ago.
	k, ref, source := newKeeper(t, s, snapshot.Settings{Margin: time.Nanosecond}), refTo("box", "i1"), newBox(t)
	mustBegin(t, k, ref)
	source.write(t, "workspace/file", "content")
	source.write(t, ".config/file", "content")
	first := mustSnapshot(t, k, ref, source)
	stored := objects(t, s, "")
	if again := mustSnapshot(t, k, ref, source); again.ID != first.ID {
		t.Errorf("unchanged: %+v, and before %+v", again, first)
	}
	wantObjects(t, s, "", stored)
	figures := metricstest.Of(t, k.Figures())
	taken, unchanged := figures.Sum("agentpod_snapshots_total", "outcome", "ok"), figures.Sum("agentpod_snapshots_total", "outcome", "unchanged")
	if taken != 1 || unchanged != 1 || figures.Sum("agentpod_snapshot_files_total") != float64(first.Files) || figures.Sum("agentpod_snapshot_bytes_total") == 0 {
		t.Errorf("%v were taken, %v were unchanged: %v", taken, unchanged, figures)
	}
}

func TestASparseFileOfAGigabyteComesBackSparse(t *testing.T) {
	k, ref, source := newKeeper(t, directory(t, t.TempDir()), snapshot.Settings{}), refTo("box", "i1"), newBox(t)
	mustBegin(t, k, ref)
	path := filepath.Join(source.home, "workspace", "disk")
	source.write(t, "workspace/disk", "")
	g := newGardener(t, source.home, 0)
	g.must(os.Truncate(path, 1<<30))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	g.must(err)
	for _, at := range []int64{0, 77_777_777, 900_000_001, 1<<30 - 4} {
		_, err := f.WriteAt([]byte("data"), at)
		g.must(err)
	}
	g.must(f.Close())
	begun := time.Now()
	most := peak(func() { mustSnapshot(t, k, ref, source) })
	t.Logf("taken in %v with %d MiB", time.Since(begun), most>>20)
	wantLittle(t, most)
	begun = time.Now()
	target := newBox(t)
	most = peak(func() {
		if _, err := restore(t, k, ref, "", target); err != nil {
			t.Error(err)
		}
	})
	t.Logf("restored in %v with %d MiB", time.Since(begun), most>>20)
	wantLittle(t, most)
	wantSame(t, picture(t, source.home), picture(t, target.home))
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(target.home, "workspace", "disk"), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("it takes %d bytes of the disk: %v", st.Blocks*512, err)
	}
}

func TestAFolderOfFiftyThousandComesBack(t *testing.T) {
	const count = 50_000
	k, ref, source := newKeeper(t, directory(t, t.TempDir()), snapshot.Settings{}), refTo("box", "i1"), newBox(t)
	mustBegin(t, k, ref)
	random := rand.New(rand.NewPCG(5, 0))
	source.write(t, "workspace/many/first", "")
	for i := range count - 1 {
		path := filepath.Join(source.home, "workspace", "many", fmt.Sprintf("f%d", i))
		if err := os.WriteFile(path, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, random.IntN(100)), 0o644); err != nil {
			t.Fatal(err)
		}
		own(t, path)
	}
	begun := time.Now()
	var taken lifecycle.Snapshot
	most := peak(func() { taken = mustSnapshot(t, k, ref, source) })
	t.Logf("taken in %v with %d MiB", time.Since(begun), most>>20)
	wantLittle(t, most)
	if taken.Files != count {
		t.Errorf("%d files", taken.Files)
	}
	begun = time.Now()
	target := newBox(t)
	if _, err := restore(t, k, ref, "", target); err != nil {
		t.Fatal(err)
	}
	t.Logf("restored in %v", time.Since(begun))
	wantSame(t, picture(t, source.home), picture(t, target.home))
}
