// Records a follow, reads the count that includes it, lists the followers, and shows what a refusal says.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType as Details } from "./gen/error_details";
import type { ProtoGrpcType as Reader } from "./gen/reader";
import type { ProtoGrpcType as Status } from "./gen/status";
import type { ProtoGrpcType as Writer } from "./gen/writer";
import type { Event } from "./gen/watertower/v1/Event";

const PROTO = join(__dirname, "../../../proto");
const GOOGLE_PROTO = join(__dirname, "../node_modules/google-proto-files");

const loaded = grpc.loadPackageDefinition(
  loadSync(["watertower/v1/writer.proto", "watertower/v1/reader.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"], {
    includeDirs: [PROTO, GOOGLE_PROTO],
    longs: Number, // counts stay below 2^53
    enums: String,
    defaults: true,
  }),
) as unknown as Writer & Reader & Status & Details;

const OPTIONS = {
  // Timeouts, retries, their budget and round robin, as the service wants them.
  "grpc.service_config": readFileSync(join(PROTO, "watertower/v1/service_config.json"), "utf8"),
};

async function run(): Promise<void> {
  const writer = client(loaded.watertower.v1.EngagementWriter, "WATERTOWER_WRITE_TARGET", "127.0.0.1:50051");
  const reader = client(loaded.watertower.v1.EngagementReader, "WATERTOWER_READ_TARGET", "127.0.0.1:50052");

  // The moment of the press: taken once, before the first attempt, so that every attempt sends the identical event.
  const now = Date.now();
  const pressed = { seconds: Math.floor(now / 1_000), nanos: (now % 1_000) * 1_000_000 };
  const follow: Event = { actor: "ann", kind: "KIND_FOLLOW", subject: "bob", state: "STATE_ACTIVE", occurredAt: pressed };
  const recorded = await call(writer.recordEvents.bind(writer), { events: [follow] });
  console.log("recorded: ann follows bob");

  // minPosition: the answer waits until it includes the write.
  const minPosition = recorded.writeToken;
  const counts = await call(reader.getCounts.bind(reader), { entity: "bob", metrics: ["METRIC_FOLLOWERS"], minPosition });
  console.log(`followers of bob: ${counts.values[0]}, the follow included: ${counts.freshness?.satisfied}`);

  let pageToken = "";
  do {
    const request = { subject: "bob", kind: "KIND_FOLLOW", pageSize: 2, pageToken, minPosition } as const;
    const list = await call(reader.listActors.bind(reader), request);
    for (const item of list.items) {
      const since = new Date(Number(item.occurredAt?.seconds) * 1_000).toISOString().replace(".000Z", "Z");
      console.log(`follower: ${item.actor} since ${since}`);
    }
    pageToken = list.nextPageToken;
  } while (pageToken !== "");

  // Nobody can follow themselves: a refusal that no retry changes.
  try {
    await call(writer.recordEvents.bind(writer), { events: [{ ...follow, subject: "ann" }] });
    throw new Error("ann follows ann");
  } catch (error) {
    if (!("metadata" in (error as Error))) throw error;
    console.log(explained(error as grpc.ServiceError));
  }
  writer.close();
  reader.close();
}

function client<C extends grpc.Client>(
  type: new (address: string, credentials: grpc.ChannelCredentials, options: grpc.ClientOptions) => C,
  variable: string,
  address: string,
): C {
  return new type(process.env[variable] ?? address, grpc.credentials.createInsecure(), OPTIONS);
}

function call<Request, Response>(
  method: (request: Request, callback: grpc.requestCallback<Response>) => grpc.ClientUnaryCall,
  request: Request,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    method(request, (error, response) => (error ? reject(error) : resolve(response as Response)));
  });
}

/** Why a call failed: the reason is for programs, the message for people. */
function explained(error: grpc.ServiceError): string {
  const { Status, ErrorInfo, BadRequest, RetryInfo } = loaded.google.rpc;
  let reason = grpc.status[error.code];
  const more: string[] = [];
  const [packed] = error.metadata.get("grpc-status-details-bin");
  for (const { type_url, value } of packed ? Status.deserialize(packed as Buffer).details : []) {
    if (type_url.endsWith("/google.rpc.ErrorInfo")) {
      reason = ErrorInfo.deserialize(value).reason;
    } else if (type_url.endsWith("/google.rpc.BadRequest")) {
      for (const { field, description } of BadRequest.deserialize(value).fieldViolations) {
        more.push(`  ${field} ${description}`);
      }
    } else if (type_url.endsWith("/google.rpc.RetryInfo")) {
      const delay = RetryInfo.deserialize(value).retryDelay;
      more.push(`  repeat the identical call after ${Number(delay?.seconds) * 1_000 + Number(delay?.nanos) / 1e6} ms`);
    }
  }
  return [`refused: ${reason}: ${error.details}`, ...more].join("\n");
}

run().catch((error: grpc.ServiceError) => {
  console.error(explained(error));
  process.exitCode = 1;
});
