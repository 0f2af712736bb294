package e2e

import (
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/linktest"
)

func TestACreateSurvivesASecondOfSilenceOfTheStore(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	link := linktest.Start(t, "tcp", server.Address)
	g := start(t, append(bucketOf(server), "S3_ENDPOINT=http://"+link.Address(), "SANDBOX_IMAGE="+stubImage(t, "./testdata/stubopencode"), "SANDBOX_MEMORY=256MiB")...)
	g.create(t, "before", nil)

	link.Silence()
	spoke := make(chan struct{})
	time.AfterFunc(time.Second, func() { link.Speak(); close(spoke) })
	g.create(t, "during", nil)
	<-spoke
	g.create(t, "after", nil)
	if n := link.Late(); n != 0 {
		t.Errorf("%d requests after the silence were sent on connections that it had cut", n)
	}

	// A silence in which nothing was asked of the store: its connections are found
	// dead by the next create.
	link.Silence()
	<-time.After(time.Second)
	link.Speak()
	g.create(t, "later", nil)
}
