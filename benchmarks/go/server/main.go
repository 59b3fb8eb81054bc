// Server answers GetCounts from a map, as little as a server in Go can do for it: the mark to compare others with.
// It decodes the request and encodes the answer with the generated code, validates nothing, and claims a fixed freshness.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "watertower/benchmarks/gets/v1"
)

type reader interface {
	getCounts(context.Context, *pb.GetCountsRequest) (*pb.GetCountsResponse, error)
}

type fromMap map[string]int64

func (m fromMap) getCounts(_ context.Context, request *pb.GetCountsRequest) (*pb.GetCountsResponse, error) {
	count, known := m[request.Entity]
	if !known {
		return nil, status.Error(codes.NotFound, "no such entity")
	}
	values := make([]int64, len(request.Metrics))
	for index := range values {
		values[index] = count
	}
	freshness := &pb.Freshness{AsOf: timestamppb.Now(), Position: make([]byte, 40), Satisfied: true}
	return &pb.GetCountsResponse{Values: values, Known: true, Freshness: freshness}, nil
}

func getCounts(server any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	request := new(pb.GetCountsRequest)
	if err := decode(request); err != nil {
		return nil, err
	}
	return server.(reader).getCounts(ctx, request)
}

func main() {
	entities := flag.String("entities", "", "file of entities, one a line")
	flag.Parse()
	lines, err := os.ReadFile(*entities)
	check(err)
	counts := fromMap{}
	for index, name := range strings.Fields(string(lines)) {
		counts[name] = int64(index % 1_000 * 8)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "watertower.v1.EngagementReader",
		HandlerType: (*reader)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "GetCounts", Handler: getCounts}},
	}, counts)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	check(server.Serve(listener))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
