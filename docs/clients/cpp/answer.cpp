// Answers a prompt, about a picture or none, with a variant of an image model: greedy, on the CPU, in ids.
//
//   answer DIR IDS [PICTURE] [--max-new-tokens 64] [--threads 0]
//
// IDS is a file with the ids of the prompt's text, for there is no tokenizer here (README.md makes it). The ids of the
// answer go to stdout, what can't be done to stderr: the rule, the numbers, the way out. All that is particular to the
// variant is read from its io.json. d width, t kept image features, s new ids.
#define STB_IMAGE_IMPLEMENTATION
#include <onnxruntime_cxx_api.h>
#include <stb/stb_image.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using Ids = std::vector<std::int64_t>;
using Shape = std::vector<std::int64_t>;
using Values = std::map<std::string, Ort::Value>;

struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

// A view of what the caller keeps.
template <typename T>
Ort::Value tensor(std::vector<T>& values, const Shape& shape) {
  return Ort::Value::CreateTensor<T>(cpu, values.data(), values.size(), shape.data(), shape.size());
}

struct Variant {
  std::string directory;
  int threads;
  nlohmann::json io;
  Ort::Env environment{ORT_LOGGING_LEVEL_ERROR};

  Variant(const std::string& place, int count) : directory(place), threads(count) {
    std::ifstream file(directory + "/io.json");
    io = nlohmann::json::parse(file, nullptr, false);
    if (io.is_discarded())
      throw Refused("A variant must have an intact io.json: " + place + " has none. Export it again.");
    const std::string form = io.at("form");
    if (form != "cpu" && form != "int4" && form != "int8")
      throw Refused("The form must be one of cpu, int4, int8 on a CPU, it is " + form + ". Export another.");
    if (!io.at("graphs").contains("preprocess.onnx"))
      throw Refused("A variant must have preprocess.onnx, of an image model: " + place + " has none. Export it again.");
  }

  Ort::Session open(const std::string& name) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    const bool seeing = name == "vision.onnx" || name == "preprocess.onnx";
    for (auto& [key, value] : io.at(seeing ? "vision_session_options" : "session_options").items())
      options.AddConfigEntry(key.c_str(), value.get<std::string>().c_str());
    return Ort::Session(environment, (directory + "/" + name).c_str(), options);
  }
};

// All outputs by name; the inputs are taken.
Values run(Ort::Session& session, Values fed) {
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> inputs, outputs;
  std::vector<Ort::Value> given;
  for (auto& [name, value] : fed) inputs.push_back(name), given.push_back(std::move(value));
  for (std::size_t i = 0; i < session.GetOutputCount(); ++i)
    outputs.push_back(session.GetOutputNameAllocated(i, allocator).get());
  const auto pointers = [](const std::vector<std::string>& names) {
    std::vector<const char*> found;
    for (auto& name : names) found.push_back(name.c_str());
    return found;
  };
  const auto in = pointers(inputs), out = pointers(outputs);
  auto values = session.Run(Ort::RunOptions{}, in.data(), given.data(), in.size(), out.data(), out.size());
  Values found;
  for (std::size_t i = 0; i < outputs.size(); ++i) found.emplace(outputs[i], std::move(values[i]));
  return found;
}

// What preprocess.onnx makes of a picture: the crops, their masks, which features stay, and the ids.
Values cut(Variant& variant, const std::string& file) {
  int width, height, channels;
  if (stbi_is_16_bit(file.c_str()))
    throw Refused("Pixels must have 8 bits a colour: " + file + " has 16. Convert it.");
  unsigned char* pixels = stbi_load(file.c_str(), &width, &height, &channels, 3);  // alpha is dropped, not composited
  if (!pixels)
    throw Refused("The image must be whole and readable: " + file + ": " + stbi_failure_reason() + ". Convert it.");
  std::vector<std::uint8_t> image(pixels, pixels + std::size_t(width) * height * 3);
  stbi_image_free(pixels);
  const auto& rule = variant.io.at("picture");
  const std::int64_t least = rule.at("least_side"), most = rule.at("most_side");
  const auto [narrow, wide] = std::minmax<std::int64_t>({width, height});
  const std::string size = file + " has " + std::to_string(width) + "×" + std::to_string(height);
  if (narrow < least || wide > most)
    throw Refused("A side has " + std::to_string(least) + " to " + std::to_string(most) + " pixels: " + size +
                  ". Scale it.");
  if (const auto& aspect = rule.at("aspect_below"); !aspect.is_null() && wide >= aspect.get<std::int64_t>() * narrow)
    throw Refused("The longer side must be less than " + aspect.dump() + " times the shorter one: " + size +
                  ". Crop it.");
  Values fed;
  fed.emplace("image", tensor(image, {height, width, 3}));
  Ort::Session session = variant.open("preprocess.onnx");
  return run(session, std::move(fed));
}

Ids answer(Variant& variant, const Ids& text, const std::string& picture, std::int64_t most) {
  const auto &prompt = variant.io.at("prompt"), &graphs = variant.io.at("graphs");
  const std::int64_t d = graphs.at("vision.onnx").at("outputs")[0].at("shape")[1];
  std::vector<float> nothing;
  std::map<std::string, Ids> parts{{"begin", {prompt.at("begin").get<std::int64_t>()}}, {"text", text}};
  Ort::Value features = tensor(nothing, {0, d});
  if (!picture.empty()) {
    Values found = cut(variant, picture);
    auto ids = std::move(found.extract("image_ids").mapped());
    const auto* first = ids.GetTensorData<std::int64_t>();
    parts["image"].assign(first, first + ids.GetTensorTypeAndShapeInfo().GetElementCount());
    Ort::Session vision = variant.open("vision.onnx");
    features = std::move(run(vision, std::move(found)).at("image_features"));
  }
  Ids next;
  for (const std::string part : prompt.at("order")) next.insert(next.end(), parts[part].begin(), parts[part].end());
  const std::int64_t positions = variant.io.at("max_positions");
  if (std::int64_t(next.size()) >= positions)
    throw Refused("A prompt must leave one of " + std::to_string(positions) + " positions, it has " +
                  std::to_string(next.size()) + " ids. Shorten it.");
  Ort::Session embedding = variant.open("embedding.onnx"), decoder = variant.open("text.onnx");
  Values cache;
  for (const auto& input : graphs.at("text.onnx").at("inputs")) {
    const std::string name = input.at("name");
    if (name.rfind("past_key_values.", 0) == 0)
      cache.emplace(name, tensor(nothing, {1, input.at("shape")[1], 0, input.at("shape")[3]}));
  }
  const Ids ends = prompt.at("end");
  Ids found;
  for (std::int64_t length = next.size(); std::int64_t(found.size()) < most && length < positions; ++length) {
    Values fed;
    fed.emplace("input_ids", tensor(next, {1, std::int64_t(next.size())}));
    fed.emplace("image_features", std::move(features));
    features = tensor(nothing, {0, d});  // they belong to the prompt
    Ids mask(length, 1);
    cache.emplace("inputs_embeds", std::move(run(embedding, std::move(fed)).at("inputs_embeds")));
    cache.emplace("attention_mask", tensor(mask, {1, length}));
    Values results = run(decoder, std::move(cache));
    const auto logits = std::move(results.extract("logits").mapped());
    const auto info = logits.GetTensorTypeAndShapeInfo();
    const float* behind = logits.GetTensorData<float>() + info.GetElementCount();
    const float* last = behind - info.GetShape().back();
    const std::int64_t token = std::max_element(last, behind) - last;
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) break;
    found.push_back(token);
    next = {token};
    cache.clear();
    for (auto& [name, value] : results)  // present.0.key -> past_key_values.0.key
      cache.emplace("past_key_values" + name.substr(name.find('.')), std::move(value));
  }
  return found;
}

int main(int count, char** words) try {
  std::map<std::string, std::int64_t> numbers{{"--max-new-tokens", 64}, {"--threads", 0}};
  std::vector<std::string> places;
  for (int i = 1; i < count; ++i) {
    if (!numbers.count(words[i])) places.push_back(words[i]);
    else if (++i < count) numbers[words[i - 1]] = std::stoll(words[i]);
  }
  if (places.size() < 2 || places.size() > 3 || numbers["--max-new-tokens"] < 1 || numbers["--threads"] < 0)
    throw Refused("A directory and a file of ids must be given, numbers from 1 and 0 on: "
                  "answer DIR IDS [PICTURE] [--max-new-tokens 64] [--threads 0]");
  std::ifstream file(places[1]);
  Ids text;
  for (std::int64_t id; file >> id;) text.push_back(id);
  if (text.empty() || !file.eof()) throw Refused("IDS must be a file of whole numbers: " + places[1] + ". Make it again.");
  Variant variant(places[0], int(numbers["--threads"]));
  for (const std::int64_t id : answer(variant, text, places.size() > 2 ? places[2] : "", numbers["--max-new-tokens"]))
    std::cout << id << ' ';
  std::cout << std::endl;
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
