import com.google.gson.Gson;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Timestamp;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.Map;
import java.util.Optional;
import watertower.v1.EngagementReaderGrpc;
import watertower.v1.EngagementWriterGrpc;
import watertower.v1.Event;
import watertower.v1.GetCountsRequest;
import watertower.v1.Kind;
import watertower.v1.ListActorsRequest;
import watertower.v1.Metric;
import watertower.v1.RecordEventsRequest;
import watertower.v1.State;

/** Records a follow, reads the count that includes it, lists the followers, and shows what a refusal says. */
public final class Follow {
    public static void main(String[] arguments) throws IOException {
        ManagedChannel writes = channel("WATERTOWER_WRITE_TARGET", "127.0.0.1:50051");
        ManagedChannel reads = channel("WATERTOWER_READ_TARGET", "127.0.0.1:50052");
        int code = 0;
        try {
            run(EngagementWriterGrpc.newBlockingStub(writes), EngagementReaderGrpc.newBlockingStub(reads));
        } catch (StatusRuntimeException error) {
            explain(System.err, error);
            code = 1;
        } finally {
            writes.shutdownNow();
            reads.shutdownNow();
        }
        System.exit(code);
    }

    private static void run(
            EngagementWriterGrpc.EngagementWriterBlockingStub writer, EngagementReaderGrpc.EngagementReaderBlockingStub reader) {
        // The moment of the press: taken once, before the first attempt, so that every attempt sends the identical event.
        Instant now = Instant.now();
        Timestamp pressed = Timestamp.newBuilder().setSeconds(now.getEpochSecond()).setNanos(now.getNano()).build();
        Event follow = Event.newBuilder()
                .setActor("ann")
                .setKind(Kind.KIND_FOLLOW)
                .setSubject("bob")
                .setState(State.STATE_ACTIVE)
                .setOccurredAt(pressed)
                .build();
        var recorded = writer.recordEvents(RecordEventsRequest.newBuilder().addEvents(follow).build());
        System.out.println("recorded: ann follows bob");

        // min_position: the answer waits until it includes the write.
        var counts = reader.getCounts(GetCountsRequest.newBuilder()
                .setEntity("bob")
                .addMetrics(Metric.METRIC_FOLLOWERS)
                .setMinPosition(recorded.getWriteToken())
                .build());
        System.out.printf("followers of bob: %d, the follow included: %b%n", counts.getValues(0), counts.getFreshness().getSatisfied());

        String page = "";
        do {
            var list = reader.listActors(ListActorsRequest.newBuilder()
                    .setSubject("bob")
                    .setKind(Kind.KIND_FOLLOW)
                    .setPageSize(2)
                    .setPageToken(page)
                    .setMinPosition(recorded.getWriteToken())
                    .build());
            for (var item : list.getItemsList()) {
                Instant since = Instant.ofEpochSecond(item.getOccurredAt().getSeconds());
                System.out.printf("follower: %s since %s%n", item.getActor(), since);
            }
            page = list.getNextPageToken();
        } while (!page.isEmpty());

        // Nobody can follow themselves: a refusal that no retry changes.
        try {
            Event self = follow.toBuilder().setSubject("ann").build();
            writer.recordEvents(RecordEventsRequest.newBuilder().addEvents(self).build());
            throw new IllegalStateException("ann follows ann");
        } catch (StatusRuntimeException error) {
            explain(System.out, error);
        }
    }

    /** With timeouts, retries, their budget and round robin, as the service wants them. */
    private static ManagedChannel channel(String variable, String address) throws IOException {
        try (Reader text = new InputStreamReader(Follow.class.getResourceAsStream("/service_config.json"), StandardCharsets.UTF_8)) {
            @SuppressWarnings("unchecked")
            Map<String, ?> serviceConfig = new Gson().fromJson(text, Map.class);
            String target = Optional.ofNullable(System.getenv(variable)).orElse(address);
            return Grpc.newChannelBuilder(target, InsecureChannelCredentials.create())
                    .defaultServiceConfig(serviceConfig)
                    .enableRetry()
                    .build();
        }
    }

    /** Says why a call failed: the reason is for programs, the message for people. */
    private static void explain(PrintStream out, StatusRuntimeException error) {
        com.google.rpc.Status status = StatusProto.fromThrowable(error);
        String reason = error.getStatus().getCode().name();
        StringBuilder more = new StringBuilder();
        try {
            for (Any detail : status.getDetailsList()) {
                if (detail.is(ErrorInfo.class)) {
                    reason = detail.unpack(ErrorInfo.class).getReason();
                } else if (detail.is(BadRequest.class)) {
                    for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
                        more.append("  %s %s%n".formatted(violation.getField(), violation.getDescription()));
                    }
                } else if (detail.is(RetryInfo.class)) {
                    var delay = detail.unpack(RetryInfo.class).getRetryDelay();
                    long delayMs = delay.getSeconds() * 1_000 + delay.getNanos() / 1_000_000;
                    more.append("  repeat the identical call after %d ms%n".formatted(delayMs));
                }
            }
        } catch (InvalidProtocolBufferException malformed) {
            more.append("  its details cannot be read%n".formatted());
        }
        out.printf("refused: %s: %s%n%s", reason, status.getMessage(), more);
    }
}
