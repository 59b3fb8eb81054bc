// Load sends the same unary call over and over, from so many callers on so many connections, and prints what came of it as JSON.
// The request is given as bytes and the answer is not decoded: the work of the caller's side is that of grpc-go's transport alone.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// raw passes bytes through.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append((*v.(*[]byte))[:0], data...)
	return nil
}
func (raw) Name() string { return "proto" }

func main() {
	address := flag.String("address", "", "HOST:PORT")
	method := flag.String("method", "", "/package.Service/Method")
	requests := flag.String("requests", "", "file of requests, one a line, in hex")
	connections := flag.Int("connections", 4, "connections")
	callers := flag.Int("callers", 64, "callers, spread over the connections, each with one call at a time")
	warm := flag.Duration("warm", time.Second, "time before anything is counted")
	length := flag.Duration("for", 5*time.Second, "time in which calls are counted")
	flag.Parse()

	lines, err := os.ReadFile(*requests)
	check(err)
	var bodies [][]byte
	for _, line := range splitLines(lines) {
		body, err := hex.DecodeString(line)
		check(err)
		bodies = append(bodies, body)
	}
	var channels []*grpc.ClientConn
	for range *connections {
		channel, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		check(err)
		defer channel.Close()
		channels = append(channels, channel)
	}

	began := time.Now()
	from, until := began.Add(*warm), began.Add(*warm+*length)
	var wait sync.WaitGroup
	took := make([][]time.Duration, *callers)
	failed := make([]int, *callers)
	for caller := range *callers {
		wait.Add(1)
		go func() {
			defer wait.Done()
			channel := channels[caller%len(channels)]
			var answer []byte
			for number := caller * len(bodies) / *callers; ; number++ { // each at a place of its own
				body := bodies[number%len(bodies)]
				asked := time.Now()
				if asked.After(until) {
					return
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				err := channel.Invoke(ctx, *method, &body, &answer, grpc.ForceCodec(raw{}))
				cancel()
				if now := time.Now(); asked.After(from) && now.Before(until) {
					if err != nil {
						failed[caller]++
					} else {
						took[caller] = append(took[caller], now.Sub(asked))
					}
				}
			}
		}()
	}
	time.Sleep(time.Until(from))
	fmt.Println("counting") // whoever watches the server's CPU begins here
	time.Sleep(time.Until(until))
	fmt.Println("counted")
	wait.Wait()

	var all []time.Duration
	errors := 0
	for caller := range *callers {
		all = append(all, took[caller]...)
		errors += failed[caller]
	}
	sort.Slice(all, func(a, b int) bool { return all[a] < all[b] })
	quantile := func(share float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return all[int(share*float64(len(all)-1))].Seconds() * 1e3
	}
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"calls": len(all), "errors": errors, "seconds": length.Seconds(), "p50_ms": quantile(0.5), "p99_ms": quantile(0.99),
	}))
}

func splitLines(data []byte) []string {
	var lines []string
	start := 0
	for at, c := range data {
		if c == '\n' {
			if at > start {
				lines = append(lines, string(data[start:at]))
			}
			start = at + 1
		}
	}
	return lines
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
