package mirror_test

import (
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

func benchmarkOnBoth(b *testing.B, run func(b *testing.B, s store.Store)) {
	b.Run("directory", func(b *testing.B) { run(b, openDirectory(b)) })
	b.Run("S3", func(b *testing.B) { run(b, openS3(b)) })
}

func BenchmarkFirstSyncOf1105Files(b *testing.B) {
	benchmarkOnBoth(b, func(b *testing.B, s store.Store) {
		tree := manyFiles(1105)
		m := mirrorOn(b, s, tree)
		for b.Loop() {
			mustSync(b, m, tree)
			b.StopTimer()
			if err := m.Delete(b.Context(), ref); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

func BenchmarkImportOf1105Files(b *testing.B) {
	benchmarkOnBoth(b, func(b *testing.B, s store.Store) {
		tree := manyFiles(1105)
		m := mirrorOn(b, s, tree)
		mustSync(b, m, tree)
		for b.Loop() {
			mustImport(b, m, newMemTree())
		}
	})
}

func BenchmarkUnchangedSyncOf10000Files(b *testing.B) {
	benchmarkOnBoth(b, func(b *testing.B, s store.Store) {
		tree := manyFiles(10_000)
		m := mirrorOn(b, s, tree)
		mustSync(b, m, tree)
		for b.Loop() {
			mustSync(b, m, tree)
		}
	})
}
