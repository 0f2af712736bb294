package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/benchreport"
)

// poolCreates is how many sandboxes BenchmarkPool makes, of each kind.
const poolCreates = 10

// BenchmarkPool measures creates that take a container of the pool, until their
// reply and until the first answer, against creates that boot one and against
// later messages. All are taken in turn.
func BenchmarkPool(b *testing.B) {
	g, err := launch("POOL_SIZE=1")
	if err != nil {
		b.Fatal(err)
	}
	cold, err := launch()
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		for _, g := range []*gateway{g, cold} {
			if err := g.destroy(); err != nil {
				b.Error(err)
			}
		}
	}()
	var reply, answer, later, own, coldReply, coldAnswer []time.Duration
	for i := range benchreport.Few(poolCreates) {
		g.pooled(b)
		began := time.Now()
		id := g.benchCreate(b, fmt.Sprint("pool-", i), nil)
		reply = append(reply, time.Since(began))
		g.benchMessage(b, id)
		answer = append(answer, time.Since(began))
		for range 3 {
			began := time.Now()
			g.benchMessage(b, id)
			later = append(later, time.Since(began))
		}
		g.benchDelete(b, id)

		g.pooled(b)
		began = time.Now()
		id = g.benchCreate(b, fmt.Sprint("own-", i), object{"agents_md": "Be brief.", "username": "somebody"})
		g.benchMessage(b, id)
		own = append(own, time.Since(began))
		g.benchDelete(b, id)

		r, a := cold.coldCreate(b, i)
		coldReply, coldAnswer = append(coldReply, r), append(coldAnswer, a)
	}
	const name = "create from the pool until "
	report.Add(b,
		benchreport.Row{
			Name: name + "its reply", Unit: "s", Samples: benchreport.Seconds(reply...),
			Baseline: benchreport.Against("cold create until its reply", benchreport.Seconds(coldReply...)),
		},
		benchreport.Row{
			Name: name + "the first answer", Unit: "s", Samples: benchreport.Seconds(answer...),
			Baseline: benchreport.Against("a later message", benchreport.Seconds(later...)),
		},
		benchreport.Row{
			Name: name + "the first answer, with a config of its own", Unit: "s", Samples: benchreport.Seconds(own...),
			Baseline: benchreport.Against("cold create until the first answer", benchreport.Seconds(coldAnswer...)),
		},
	)
}

func (g *gateway) benchCreate(b *testing.B, id string, config object) string {
	b.Helper()
	g.benchCall(b, http.MethodPost, "/sandbox", object{"id": id, "userId": "bench", "config": config}, "")
	return id
}

func (g *gateway) benchMessage(b *testing.B, id string) {
	b.Helper()
	g.benchCall(b, http.MethodPost, "/sandbox/"+id+"/message", object{"message": "hello"}, "echo: hello")
}

func (g *gateway) benchDelete(b *testing.B, id string) {
	b.Helper()
	g.benchCall(b, http.MethodDelete, "/sandbox/"+id, nil, "")
}

func (g *gateway) benchCall(b *testing.B, method, path string, body any, says string) {
	b.Helper()
	if status, reply, err := g.do(b.Context(), method, path, body); err != nil || status != http.StatusOK || !strings.Contains(string(reply), says) {
		b.Fatalf("%s %s: %d %s %v", method, path, status, reply, err)
	}
}
