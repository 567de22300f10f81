// Torch ops: attention with ReLU scores over many taps, and its gradients.
//
// Scores, weights and features of a part of the samples, rows and taps are made in scratch memory
// and never kept: products by the vendor's library, what lies between them by our kernels. On the
// CPU parts are small enough for the cache and run side by side, each on one thread, cut by shapes
// alone; on a device a part is as much as memory allows. The backward makes scores anew, beside
// the products of the gradient with the features, by one product with [q; g_z].
#include "side/bind/mixing.h"
#include "side/bind/products.h"
#include "side/bind/taps.h"

namespace pyext::side {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The inputs, checked.
struct Attention {
  int64_t B;           // samples, or packed sequences
  int64_t K, M, N, d;  // M and N of a sample; of all sequences together when packed
  bool packed, causal, clamp;
  // With alpha, or one tap, the taps' keys follow one another as those of one attention; otherwise
  // each tap's attention has queries and a result of its own.
  bool joined;
  bool shared;  // q came without taps
  double rho, eps;
  Tensor q;  // [B, M, d] when joined, else [B, K, M, d]; contiguous; B is 1 when packed
  Tensor h, a, c, keep, alpha, score_bias, base_index, base_scale;
  std::vector<int64_t> ends;

  Attention(const Tensor& q_, const Tensor& h_, const OptionalTensor& a_, const OptionalTensor& c_,
            const OptionalTensor& mask, const OptionalTensor& alpha_,
            const OptionalTensor& score_bias_, double rho_, const OptionalTensor& base_index_,
            const OptionalTensor& base_scale_, double eps_, std::string_view eps_mode, bool causal_,
            const OptionalTensor& cu_seqlens)
      : packed(cu_seqlens.has_value()), causal(causal_), rho(rho_), eps(eps_) {
    TORCH_CHECK_VALUE(eps_mode == "add" || eps_mode == "clamp",
                      "eps_mode: expected 'add', 'clamp', got '", eps_mode, "'");
    clamp = eps_mode == "clamp";
    TORCH_CHECK_VALUE(q_.dim() == 3 || q_.dim() == 4,
                      "q: expected shape [B, M, d] or [B, K', M, d], got ", q_.sizes());
    shared = q_.dim() == 3;
    const int64_t batch = q_.size(0);
    M = q_.size(-2);
    d = q_.size(-1);
    h = activations(h_, q_, "q", batch, d);
    K = h.size(1);
    N = h.size(2);
    TORCH_CHECK_VALUE(shared || q_.size(1) == K, "q: expected ", K, " taps like h, got ",
                      q_.size(1));
    TORCH_CHECK_VALUE((rho == 0 && !causal && !packed) || M == N,
                      rho != 0 ? "identity term" : (causal ? "causal" : "packed"),
                      " needs equal query and key lengths (got ", M, ", ", N, ")");
    B = batch;
    if (packed) {
      TORCH_CHECK_VALUE(batch == 1, "q: expected a batch of 1 with cu_seqlens, got ", batch);
      ends = sequence_ends(*cu_seqlens, q_, N);
      B = int64_t(ends.size()) - 1;
    }
    joined = (shared && alpha_.has_value()) || K == 1;
    q = (joined || !shared ? q_ : q_.unsqueeze(1).expand({batch, K, M, d})).contiguous();
    a = dense_wide(a_, "a", q, "q", {K, d});
    c = dense_wide(c_, "c", q, "q", {K, d});
    alpha = dense_wide(alpha_, "alpha", q, "q", {B, K});
    score_bias = dense_wide(score_bias_, "score_bias", q, "q", {K});
    base_index = dense_typed(base_index_, "base_index", at::kLong, q, "q", {B});
    base_scale = dense_wide(base_scale_, "base_scale", q, "q", {K});
    TORCH_CHECK_VALUE(!packed || !mask, "mask: expected none with cu_seqlens");
    keep = dense_typed(mask, "mask", at::kBool, q, "q", {batch, N});
    if (keep.defined()) keep = keep.to(wide_type(q));
    check_base();
  }

  int64_t batch() const { return packed ? 1 : B; }
  bool empty() const { return q.numel() == 0 || h.numel() == 0; }
  at::TensorOptions wide() const { return q.options().dtype(wide_type(q)); }
  at::TensorOptions product() const { return q.options().dtype(product_type(q)); }
  // Shape of z: over all taps at once, or one a tap.
  std::vector<int64_t> result() const {
    if (alpha.defined()) return {batch(), M, d};
    return {batch(), K, M, d};
  }

 private:
  // A base outside its sample is refused on the CPU; on a device, where to look is to wait, no row
  // gets one.
  void check_base() const {
    if (!base_index.defined() || !base_index.is_cpu()) return;
    const auto* index = base_index.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < B; ++i) {
      const int64_t tokens = packed ? ends[i + 1] - ends[i] : N;
      TORCH_CHECK_VALUE(index[i] >= 0 && index[i] < tokens,
                        "base_index: expected positions from 0 to below ", tokens, ", got ",
                        index[i], " for sample ", i);
    }
  }
};

// Some samples, with some rows and taps.
struct Part {
  int64_t sample, samples;
  int64_t batch, begin;    // where they start in q and h
  int64_t all_rows, keys;  // of a sample
  int64_t row, rows;
  int64_t tap, taps;
};

// How samples are cut into parts.
struct Cut {
  int64_t samples, rows, taps;

  // `copies` of the scores are held at once.
  Cut(const Attention& in, int64_t rows_, int64_t keys, int64_t copies) {
    const bool device = is_device(in.q);
    // So that scores and features stay in a core's cache, and a product of them is no longer small.
    const int64_t size = at::elementSize(product_type(in.q));
    const int64_t most_scores = (device ? int64_t(1) << 26 : (768 << 10) / size) / copies;
    const int64_t most_features = device ? int64_t(1) << 26 : (1024 << 10) / size;
    const auto fit = [](int64_t most, int64_t each, int64_t limit) {
      return std::clamp<int64_t>(most / std::max<int64_t>(each, 1), 1, std::max<int64_t>(limit, 1));
    };
    rows = rows_;
    if (rows * keys > most_scores) {
      const int64_t step = std::max<int64_t>(most_scores / keys / 32 * 32, 32);
      rows = ceil_div(rows, ceil_div(rows, step));
    }
    taps = std::min(fit(most_scores, rows * keys, in.K), fit(most_features, keys * in.d, in.K));
    samples = 1;
    if (in.packed || rows < rows_ || taps < in.K) return;
    const int64_t limit = device ? in.B : in.B / 16;
    samples = std::min(fit(most_scores, in.K * rows * keys, limit),
                       fit(most_features, in.K * keys * in.d, limit));
  }
};

// All samples in parts of `in.K` taps and all rows.
std::vector<Part> whole_parts(const Attention& in, int64_t copies) {
  std::vector<Part> parts;
  if (in.packed) {
    for (int64_t i = 0; i < in.B; ++i) {
      const int64_t begin = in.ends[i], n = in.ends[i + 1] - begin;
      if (n) parts.push_back({i, 1, 0, begin, n, n, 0, n, 0, in.K});
    }
    return parts;
  }
  const int64_t step = Cut(in, in.M, in.N, copies).samples;
  for (int64_t i = 0; i < in.B; i += step)
    parts.push_back({i, std::min(step, in.B - i), i, 0, in.M, in.N, 0, in.M, 0, in.K});
  return parts;
}

// Parts that a few samples are cut into at least, so that they keep many threads busy.
constexpr int64_t kBusy = 8;

// The same in blocks of rows: features are made for each, so a block is not small.
std::vector<Part> row_parts(const Attention& in) {
  constexpr int64_t kLeastRows = 64;
  std::vector<Part> parts;
  const std::vector<Part> whole = whole_parts(in, 1);
  const int64_t blocks = is_device(in.q) ? 1 : ceil_div(kBusy, int64_t(whole.size()));
  for (Part p : whole) {
    const int64_t step = std::min(Cut(in, p.all_rows, p.keys, 1).rows,
                                  std::max(ceil_div(p.all_rows, blocks), kLeastRows));
    for (; p.row < p.all_rows; p.row += step) {
      p.rows = std::min(step, p.all_rows - p.row);
      parts.push_back(p);
    }
  }
  return parts;
}

// Into how many ranges of taps the parts of whole samples are cut.
int64_t tap_ranges(const Attention& in, const std::vector<Part>& whole) {
  if (is_device(in.q) || whole.empty() || whole[0].samples > 1) return 1;
  return std::min(ceil_div(kBusy, int64_t(whole.size())), in.K);
}

// Scratch memory of one thread, kept from part to part.
struct Space {
  Tensor features, g_features, scores, stacked, sum, term;

  static Tensor of(Tensor& memory, int64_t count, const at::TensorOptions& options) {
    if (!memory.defined() || memory.numel() < count) memory = empty({count}, options);
    return memory;
  }
};

// A stack of matrices inside a tensor's memory; one alone has no first dimension.
Tensor matrices(const Tensor& tensor, int64_t offset, int64_t count, int64_t stride, int64_t rows,
                int64_t row_stride, int64_t columns) {
  const int64_t at = tensor.storage_offset() + offset;
  if (count == 1) return tensor.as_strided({rows, columns}, {row_stride, 1}, at);
  return tensor.as_strided({count, rows, columns}, {stride, row_stride, 1}, at);
}

// out = a b, or out += a b; matrices or stacks of them, all of one type.
void multiply(Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  if (out.dim() == 2)
    add ? at::addmm_out(out, out, a, b) : at::mm_out(out, a, b);
  else
    add ? at::baddbmm_out(out, out, a, b) : at::bmm_out(out, a, b);
}

// The term a b of a sum that ends in `out`: 16-bit terms are added in the type of sums.
void accumulate(Tensor& out, const Tensor& a, const Tensor& b, bool first, bool last,
                const at::TensorOptions& wide, Space& space) {
  if (out.scalar_type() == a.scalar_type() && first && last) return multiply(out, a, b, false);
  const bool is_wide = out.dtype() == wide.dtype();
  Tensor sum =
      is_wide ? out
              : Space::of(space.sum, out.numel(), wide).narrow(0, 0, out.numel()).view(out.sizes());
  if (a.dtype() == wide.dtype()) {
    multiply(sum, a, b, !first);
  } else {
    Tensor term =
        Space::of(space.term, out.numel(), a.options()).narrow(0, 0, out.numel()).view(out.sizes());
    multiply(term, a, b, false);
    first ? sum.copy_(term) : sum.add_(term);
  }
  if (!is_wide && last) out.copy_(sum);
}

struct Gradients {
  Tensor q;      // like q
  Tensor h;      // [B, K, N, d]
  Tensor a, c;   // [B, K, d], sums over a sample's tokens; empty where there is no affine
  Tensor terms;  // [B, K, M, kTerms], or undefined
};

// The products and kernels of one part, in one thread's scratch memory.
template <class S>
class Worker {
  using W = Wide<S>;

 public:
  Worker(const Attention& in_, const Context& context_, Space& space_)
      : in(in_), context(context_), space(space_), kernels(kernels_for<S>(in_.q)) {}

  // Features of a part's keys, [cols, d] a stack: as they lie in h if they are that, else made.
  Tensor features(const Part& p) {
    if (auto h = in_place(in.h, p)) return *h;
    const int64_t count = p.samples * p.taps * p.keys * in.d;
    const Tensor made = Space::of(space.features, count, in.product());
    auto args = features_args(p);
    args.features = pointer<Product<S>>(made);
    kernels.features(args, context);
    return matrices(made, 0, stack(p), columns(p) * in.d, columns(p), in.d, in.d);
  }

  // z [result] and the sums of rows.
  void forward(const Part& p, bool first, bool last, const Tensor& z, const Tensor& rowsum) {
    const Tensor keys = features(p);
    const int64_t size = p.rows * columns(p);
    const Tensor memory = Space::of(space.scores, stack(p) * size, in.product());
    Tensor scores = matrices(memory, 0, stack(p), size, p.rows, columns(p), columns(p));
    multiply(scores, queries(in.q, p).to(product_type(in.q)), keys.mT(), false);
    kernels.weigh(weigh_args(p, memory, 1, rowsum), context);
    Tensor out = queries(z, p);
    accumulate(out, scores, keys, first, last, in.wide(), space);
  }

  // All rows of a part in blocks of `step`. g.q receives, or has added, what its taps give.
  void backward(const Part& p, int64_t step, bool first, bool last, const Tensor& g_z,
                const Tensor& rowsum, const Gradients& g) {
    const Tensor keys = features(p);
    const auto options = in.product();
    std::optional<Tensor> placed = in_place(g.h, p);
    const Tensor made =
        placed ? Tensor() : Space::of(space.g_features, stack(p) * columns(p) * in.d, options);
    Tensor g_keys =
        placed ? *placed : matrices(made, 0, stack(p), columns(p) * in.d, columns(p), in.d, in.d);
    Part block = p;
    for (block.row = 0; block.row < p.all_rows; block.row += step) {
      block.rows = std::min(step, p.all_rows - block.row);
      const int64_t n = block.rows, cols = columns(p), count = stack(p);
      const Tensor stacked = Space::of(space.stacked, count * 2 * n * in.d, options);
      matrices(stacked, 0, count, 2 * n * in.d, n, in.d, in.d).copy_(queries(in.q, block));
      matrices(stacked, n * in.d, count, 2 * n * in.d, n, in.d, in.d).copy_(queries(g_z, block));
      const Tensor both = matrices(stacked, 0, count, 2 * n * in.d, 2 * n, in.d, in.d);
      const Tensor memory = Space::of(space.scores, count * 2 * n * cols, options);
      Tensor scores = matrices(memory, 0, count, 2 * n * cols, 2 * n, cols, cols);
      multiply(scores, both, keys.mT(), false);
      WeighBackwardArgs<S> args{weigh_args(block, memory, 2, rowsum), n * cols, nullptr};
      if (g.terms.defined()) args.terms = pointer<W>(g.terms) + kTerms * sum_at(block);
      kernels.weigh_backward(args, context);
      accumulate(g_keys, scores.mT(), both, block.row == 0, block.row + n == p.all_rows, in.wide(),
                 space);
      Tensor g_q = queries(g.q, block);
      accumulate(g_q, matrices(memory, 0, count, 2 * n * cols, n, cols, cols), keys, first, last,
                 in.wide(), space);
    }
    if (placed) return;
    FeaturesBackwardArgs<S> args{};
    args.forward = features_args(p);
    args.g_features = pointer<Product<S>>(made);
    args.g_h =
        pointer<S>(g.h) + p.batch * g.h.stride(0) + p.tap * g.h.stride(1) + p.begin * g.h.stride(2);
    args.sample_stride = g.h.stride(0);
    args.tap_stride = g.h.stride(1);
    args.token_stride = g.h.stride(2);
    args.sum_stride = in.K * in.d;
    const int64_t at = (p.sample * in.K + p.tap) * in.d;
    if (in.a.defined()) args.g_a = pointer<W>(g.a) + at;
    if (in.c.defined()) args.g_c = pointer<W>(g.c) + at;
    kernels.features_backward(args, context);
  }

 private:
  const Attention& in;
  const Context& context;
  Space& space;
  const Kernels<S>& kernels;

  // Matrices in a part's stack, and their columns.
  int64_t stack(const Part& p) const { return in.joined ? p.samples : p.samples * p.taps; }
  int64_t columns(const Part& p) const { return in.joined ? p.taps * p.keys : p.keys; }

  // The part's rows of a tensor like q.
  Tensor queries(const Tensor& tensor, const Part& p) const {
    const int64_t first = in.joined ? p.batch : p.batch * in.K + p.tap;
    return matrices(tensor, (first * in.M + p.begin + p.row) * in.d, stack(p), in.M * in.d, p.rows,
                    in.d, in.d);
  }

  // The part's keys in a tensor like h, where that is a stack of matrices to be multiplied.
  std::optional<Tensor> in_place(const Tensor& h, const Part& p) const {
    if (in.a.defined() || in.c.defined() || h.scalar_type() != product_type(in.q))
      return std::nullopt;
    const int64_t sample = h.stride(0), tap = h.stride(1), token = h.stride(2);
    const bool regular = in.joined ? p.taps == 1 || tap == p.keys * token
                                   : p.samples == 1 || p.taps == 1 || sample == p.taps * tap;
    if (!regular || token < in.d) return std::nullopt;
    const int64_t stride = in.joined || p.taps == 1 ? sample : tap;
    return matrices(h, p.batch * sample + p.tap * tap + p.begin * token, stack(p), stride,
                    columns(p), token, in.d);
  }

  FeaturesArgs<S> features_args(const Part& p) const {
    FeaturesArgs<S> args{};
    args.samples = p.samples;
    args.taps = p.taps;
    args.tokens = p.keys;
    args.channels = in.d;
    args.sample_stride = in.h.stride(0);
    args.tap_stride = in.h.stride(1);
    args.token_stride = in.h.stride(2);
    args.h = pointer<S>(in.h) + args.at(p.batch, p.tap, p.begin);
    if (in.a.defined()) args.a = pointer<W>(in.a) + p.tap * in.d;
    if (in.c.defined()) args.c = pointer<W>(in.c) + p.tap * in.d;
    return args;
  }

  int64_t sum_at(const Part& p) const { return (p.batch * in.K + p.tap) * in.M + p.begin + p.row; }

  // `scores` holds `copies` of a part's rows one after another.
  WeighArgs<S> weigh_args(const Part& p, const Tensor& scores, int64_t copies,
                          const Tensor& rowsum) const {
    const auto from = [](const Tensor& tensor, int64_t at) {
      return tensor.defined() ? pointer<W>(tensor) + at : nullptr;
    };
    WeighArgs<S> args{};
    args.samples = p.samples;
    args.taps = p.taps;
    args.rows = p.rows;
    args.keys = p.keys;
    args.scores = pointer<Product<S>>(scores);
    args.sample_stride = copies * p.taps * p.rows * p.keys;
    args.tap_stride = in.joined ? p.keys : copies * p.rows * p.keys;
    args.row_stride = columns(p);
    args.first_row = p.row;
    args.causal = in.causal;
    args.keep = from(in.keep, p.batch * in.N);
    args.alpha = from(in.alpha, p.sample * in.K + p.tap);
    args.alpha_stride = in.K;
    args.score_bias = from(in.score_bias, p.tap);
    args.rho = W(in.rho);
    if (in.base_index.defined()) args.base_index = pointer<int64_t>(in.base_index) + p.sample;
    args.base_scale = from(in.base_scale, p.tap);
    args.eps = W(in.eps);
    args.clamp = in.clamp;
    args.rowsum = from(rowsum, sum_at(p));
    args.sum_sample_stride = in.K * in.M;
    args.sum_tap_stride = in.M;
    return args;
  }
};

std::tuple<Tensor, Tensor> side_relu_attend(
    const Tensor& q, const Tensor& h, const OptionalTensor& a, const OptionalTensor& c,
    const OptionalTensor& mask, const OptionalTensor& alpha, const OptionalTensor& score_bias,
    double rho, const OptionalTensor& base_index, const OptionalTensor& base_scale, double eps,
    std::string_view eps_mode, bool causal, const OptionalTensor& cu_seqlens) {
  const Attention in(q, h, a, c, mask, alpha, score_bias, rho, base_index, base_scale, eps,
                     eps_mode, causal, cu_seqlens);
  const std::vector<int64_t> each{in.batch(), in.K, in.M, in.d};
  const bool add_taps = !in.joined && in.alpha.defined();
  Tensor z = empty(add_taps ? each : in.result(), in.q.options());
  Tensor rowsum = at::empty({in.batch(), in.K, in.M}, in.wide());
  if (in.empty()) return {at::zeros(in.result(), in.q.options()), rowsum.zero_()};
  const std::vector<Part> parts = row_parts(in);
  Scratch scratch(in.q);
  dispatch_storage(in.q, "q", [&](auto zero) {
    using S = decltype(zero);
    const Context context = context_for(in.q, scratch);
    std::vector<Space> spaces(thread_count());
    run_products(in.q, int64_t(parts.size()), [&](int64_t unit, int thread) {
      Part p = parts[unit];
      Worker<S> worker(in, context, spaces[thread]);
      const int64_t step = Cut(in, p.all_rows, p.keys, 1).taps;
      for (p.tap = 0; p.tap < in.K; p.tap += step) {
        p.taps = std::min(step, in.K - p.tap);
        const bool first = !in.joined || p.tap == 0, last = !in.joined || p.tap + p.taps == in.K;
        worker.forward(p, first, last, z, rowsum);
      }
    });
  });
  if (add_taps) z = ordered_sum(z, {1}).to(in.q.scalar_type());
  return {z, rowsum};
}

// Sums of terms over rows (and samples): gradients to alpha, score_bias and base_scale.
struct TermSums {
  Tensor alpha, score_bias, base_scale;

  TermSums(const Attention& in, const Tensor& terms) {
    alpha = empty_where(in.alpha, {in.B, in.K}, in.wide());
    const auto of = [&](int64_t term, const Tensor& given) {
      return given.defined() ? ordered_sum(terms.select(3, term), {0, 2})
                             : at::empty({0}, in.wide());
    };
    score_bias = of(1, in.score_bias);
    base_scale = of(2, in.base_scale);
    if (!in.alpha.defined()) return;
    const Tensor shares = terms.select(3, 0);
    if (!in.packed) {
      alpha = ordered_sum(shares, {2});
      return;
    }
    for (int64_t i = 0; i < in.B; ++i)
      alpha[i].copy_(
          ordered_sum(shares[0].narrow(1, in.ends[i], in.ends[i + 1] - in.ends[i]), {1}));
  }
};

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Grads side_relu_attend_backward(const Tensor& g_z_, const Tensor& rowsum_, const Tensor& q,
                                const Tensor& h, const OptionalTensor& a, const OptionalTensor& c,
                                const OptionalTensor& mask, const OptionalTensor& alpha,
                                const OptionalTensor& score_bias, double rho,
                                const OptionalTensor& base_index, const OptionalTensor& base_scale,
                                double eps, std::string_view eps_mode, bool causal,
                                const OptionalTensor& cu_seqlens) {
  const Attention in(q, h, a, c, mask, alpha, score_bias, rho, base_index, base_scale, eps,
                     eps_mode, causal, cu_seqlens);
  Tensor g_z = dense(g_z_, "g_z", in.q, "q", in.result());
  if (!in.joined && in.alpha.defined())
    g_z = g_z.unsqueeze(1).expand({in.batch(), in.K, in.M, in.d}).contiguous();
  const Tensor rowsum = dense_wide(rowsum_, "rowsum", in.q, "q", {in.batch(), in.K, in.M});

  const std::vector<Part> parts = in.empty() ? std::vector<Part>() : whole_parts(in, 2);
  const int64_t ranges = tap_ranges(in, parts);
  // Where taps are joined g_q is a sum over them: each range has its own.
  bool summed = ranges > 1;
  for (const Part& p : parts) summed |= Cut(in, p.all_rows, p.keys, 2).taps < in.K;
  std::vector<int64_t> shape = in.q.sizes().vec();
  shape.insert(shape.begin(), in.joined ? ranges : 1);
  Tensor g_qs = empty(shape, in.joined && summed ? in.wide() : in.q.options());

  Gradients g;
  g.h = empty_gradient(in.h);
  g.a = empty_where(in.a, {in.B, in.K, in.d}, in.wide());
  g.c = empty_where(in.c, {in.B, in.K, in.d}, in.wide());
  if (in.alpha.defined() || in.score_bias.defined() || in.base_scale.defined())
    g.terms = at::empty({in.batch(), in.K, in.M, kTerms}, in.wide());
  // What no part reaches: everything of empty inputs, and empty sequences.
  if (in.empty()) g.h.zero_(), g_qs.zero_();
  if (in.empty() && g.terms.defined()) g.terms.zero_();
  if (in.empty() || in.packed) g.a.zero_(), g.c.zero_();

  Scratch scratch(in.q);
  dispatch_storage(in.q, "q", [&](auto zero) {
    using S = decltype(zero);
    const Context context = context_for(in.q, scratch);
    std::vector<Space> spaces(thread_count());
    run_products(in.q, int64_t(parts.size()) * ranges, [&](int64_t unit, int thread) {
      Part p = parts[unit / ranges];
      const int64_t range = unit % ranges;
      const int64_t begin = range * in.K / ranges, end = (range + 1) * in.K / ranges;
      Gradients own = g;
      own.q = g_qs.select(0, in.joined ? range : 0);
      Worker<S> worker(in, context, spaces[thread]);
      const Cut cut(in, p.all_rows, p.keys, 2);
      for (p.tap = begin; p.tap < end; p.tap += p.taps) {
        p.taps = std::min(cut.taps, end - p.tap);
        const bool first = !in.joined || p.tap == begin;
        const bool last = !in.joined || p.tap + p.taps == end;
        worker.backward(p, cut.rows, first, last, g_z, rowsum, own);
      }
    });
  });

  Tensor g_q = g_qs.select(0, 0);
  for (int64_t range = 1; range < g_qs.size(0); ++range) g_q.add_(g_qs.select(0, range));
  if (!in.joined && in.shared) g_q = ordered_sum(g_q, {1});
  const TermSums sums(in, g.terms);
  const auto over_samples = [&](const Tensor& gradient, const Tensor& given) {
    return given.defined() ? ordered_sum(gradient, {0}) : gradient;
  };
  return {
      g_q.reshape(q.sizes()).to(q.scalar_type()), g.h,        as_given(over_samples(g.a, in.a), a),
      as_given(over_samples(g.c, in.c), c),       sums.alpha, as_given(sums.score_bias, score_bias),
      as_given(sums.base_scale, base_scale)};
}

#define PYEXT_ATTEND_INPUTS                                                                     \
  "Tensor q, Tensor h, Tensor? a, Tensor? c, Tensor? mask, Tensor? alpha, Tensor? score_bias, " \
  "float rho, Tensor? base_index, Tensor? base_scale, float eps, str eps_mode, bool causal, "   \
  "Tensor? cu_seqlens"

void define(torch::Library& m) {
  m.def("side_relu_attend(" PYEXT_ATTEND_INPUTS ") -> (Tensor z, Tensor rowsum)");
  m.def("side_relu_attend_backward(Tensor g_z, Tensor rowsum, " PYEXT_ATTEND_INPUTS
        ") -> (Tensor g_q, Tensor g_h, Tensor g_a, Tensor g_c, Tensor g_alpha, "
        "Tensor g_score_bias, Tensor g_base_scale)");
}

void implement(torch::Library& m) {
  m.impl("side_relu_attend", &side_relu_attend);
  m.impl("side_relu_attend_backward", &side_relu_attend_backward);
}

}  // namespace

PYEXT_OPS(define, implement)

}  // namespace pyext::side
