import com.fasterxml.jackson.databind.JsonMappingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.introspect.Annotated;
import com.fasterxml.jackson.databind.introspect.JacksonAnnotationIntrospector;
import io.strimzi.api.kafka.model.kafka.Kafka;
import io.strimzi.api.kafka.model.nodepool.KafkaNodePool;
import io.strimzi.api.kafka.model.topic.KafkaTopic;
import io.strimzi.api.kafka.model.user.KafkaUser;
import java.util.List;
import java.util.Map;

/** Reads a JSON list of Strimzi's resources from standard input into Strimzi's own classes. Prints what these do not have; code 1 then. */
class Check {
    private static final Map<String, Class<?>> KINDS =
            Map.of("Kafka", Kafka.class, "KafkaNodePool", KafkaNodePool.class, "KafkaTopic", KafkaTopic.class, "KafkaUser", KafkaUser.class);

    public static void main(String[] arguments) throws Exception {
        ObjectMapper mapper = new ObjectMapper();
        // The classes keep what they do not know, for newer versions of themselves. Here it is a mistake.
        mapper.setAnnotationIntrospector(new JacksonAnnotationIntrospector() {
            @Override
            public Boolean hasAnySetter(Annotated annotated) {
                return Boolean.FALSE;
            }
        });
        boolean wrong = false;
        for (JsonNode resource : mapper.readTree(System.in)) {
            String kind = resource.get("kind").asText();
            String version = resource.get("apiVersion").asText().replace("kafka.strimzi.io/", "");
            if (!KINDS.containsKey(kind) || !((List<?>) KINDS.get(kind).getField("VERSIONS").get(null)).contains(version)) {
                System.out.println(kind + ": no such kind in version " + version);
                wrong = true;
                continue;
            }
            try {
                String lost = lost(resource, mapper.valueToTree(mapper.treeToValue(resource, KINDS.get(kind))), "");
                if (lost != null) {
                    System.out.println(kind + ": " + lost + " cannot have that value");
                    wrong = true;
                }
            } catch (JsonMappingException problem) {
                System.out.println(kind + ": " + problem.getOriginalMessage() + " at " + problem.getPathReference());
                wrong = true;
            }
        }
        System.exit(wrong ? 1 : 0);
    }

    /** Where what was read is not what was written: a word that is none of an enumeration's is read as nothing. Null if it is all there. */
    private static String lost(JsonNode given, JsonNode read, String path) {
        if (read == null || given.isValueNode()) {
            return read != null && given.asText().equals(read.asText()) ? null : path;
        }
        if (given.isArray()) {
            for (int i = 0; i < given.size(); i++) {
                String found = lost(given.get(i), read.get(i), path + "[" + i + "]");
                if (found != null) {
                    return found;
                }
            }
            return null;
        }
        for (Map.Entry<String, JsonNode> field : given.properties()) {
            if (path.isEmpty() && field.getKey().equals("apiVersion")) {
                continue; // the classes say one version of their own
            }
            String found = lost(field.getValue(), read.get(field.getKey()), path + "." + field.getKey());
            if (found != null) {
                return found;
            }
        }
        return null;
    }
}
