// Records a follow, reads the count that includes it, lists the followers, and shows what a refusal says.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	watertower "watertower-example/gen/watertower/v1"
)

//go:generate buf generate ../../proto
//go:generate cp ../../proto/watertower/v1/service_config.json gen/watertower/v1/

// Timeouts, retries, their budget and round robin, as the service wants them.
//
//go:embed gen/watertower/v1/service_config.json
var serviceConfig string

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		explain(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	writer := watertower.NewEngagementWriterClient(dial("WATERTOWER_WRITE_TARGET", "127.0.0.1:50051"))
	reader := watertower.NewEngagementReaderClient(dial("WATERTOWER_READ_TARGET", "127.0.0.1:50052"))

	// The moment of the press: taken once, before the first attempt, so that every attempt sends the identical event.
	pressed := timestamppb.Now()
	follow := &watertower.Event{
		Actor:      "ann",
		Kind:       watertower.Kind_KIND_FOLLOW,
		Subject:    "bob",
		State:      watertower.State_STATE_ACTIVE,
		OccurredAt: pressed,
	}
	recorded, err := writer.RecordEvents(ctx, &watertower.RecordEventsRequest{Events: []*watertower.Event{follow}})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "recorded: ann follows bob")

	// min_position: the answer waits until it includes the write.
	counts, err := reader.GetCounts(ctx, &watertower.GetCountsRequest{
		Entity:      "bob",
		Metrics:     []watertower.Metric{watertower.Metric_METRIC_FOLLOWERS},
		MinPosition: recorded.WriteToken,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "followers of bob: %d, the follow included: %t\n", counts.Values[0], counts.Freshness.Satisfied)

	for page := ""; ; {
		list, err := reader.ListActors(ctx, &watertower.ListActorsRequest{
			Subject:     "bob",
			Kind:        watertower.Kind_KIND_FOLLOW,
			PageSize:    2,
			PageToken:   page,
			MinPosition: recorded.WriteToken,
		})
		if err != nil {
			return err
		}
		for _, item := range list.Items {
			fmt.Fprintf(out, "follower: %s since %s\n", item.Actor, item.OccurredAt.AsTime().Format(time.RFC3339))
		}
		if page = list.NextPageToken; page == "" {
			break
		}
	}

	// Nobody can follow themselves: a refusal that no retry changes.
	self := &watertower.Event{
		Actor:      "ann",
		Kind:       watertower.Kind_KIND_FOLLOW,
		Subject:    "ann",
		State:      watertower.State_STATE_ACTIVE,
		OccurredAt: pressed,
	}
	if _, err = writer.RecordEvents(ctx, &watertower.RecordEventsRequest{Events: []*watertower.Event{self}}); err == nil {
		return errors.New("ann follows ann")
	}
	explain(out, err)
	return nil
}

func dial(variable, address string) *grpc.ClientConn {
	if given := os.Getenv(variable); given != "" {
		address = given
	}
	connection, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
	)
	if err != nil {
		log.Fatal(err)
	}
	return connection
}

// explain says why a call failed: the reason is for programs, the message for people.
func explain(out io.Writer, err error) {
	failed := status.Convert(err)
	reason := failed.Code().String()
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.Reason
		}
	}
	fmt.Fprintf(out, "refused: %s: %s\n", reason, failed.Message())
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				fmt.Fprintf(out, "  %s %s\n", violation.Field, violation.Description)
			}
		case *errdetails.RetryInfo:
			fmt.Fprintf(out, "  repeat the identical call after %d ms\n", detail.RetryDelay.AsDuration().Milliseconds())
		}
	}
}
