/* Fused loops of the training step, one thread: hyper-connections, norm with rotation, attention weights.
 *
 * Row-major f32. n = 4 streams; other sizes are arguments. Each forward has its backward below it; gradients of
 * parameters are added to, gradients of activations are written.
 */
#include <math.h>
#include <string.h>

#define N 4
#define MIX (N * N)
#define GATES (2 * N + MIX)
#define ITERS_MAX 32

static float dot(const float *a, const float *b, int d) {
    float sum = 0;
    for (int i = 0; i < d; i++) sum += a[i] * b[i];
    return sum;
}

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* Sinkhorn of one row: every normalised matrix and every divisor are kept for the backward. */
struct sinkhorn {
    float soft[MIX], steps[2 * ITERS_MAX][MIX], sums[2 * ITERS_MAX][N];
    int count;
};

/* Divides by the sums over rows (stride 1 between groups) or over columns. */
static void normalise(struct sinkhorn *s, const float *from, int columns, float eps) {
    float *to = s->steps[s->count], *sums = s->sums[s->count];
    int group = columns ? 1 : N, item = columns ? N : 1;
    for (int g = 0; g < N; g++) {
        sums[g] = eps;
        for (int i = 0; i < N; i++) sums[g] += from[g * group + i * item];
        for (int i = 0; i < N; i++) to[g * group + i * item] = from[g * group + i * item] / sums[g];
    }
    s->count++;
}

static void sinkhorn(struct sinkhorn *s, const float *logits, int iters, float eps) {
    float start[MIX];
    for (int a = 0; a < N; a++) {
        float top = logits[a * N], total = 0;
        for (int b = 1; b < N; b++) top = fmaxf(top, logits[a * N + b]);
        for (int b = 0; b < N; b++) total += s->soft[a * N + b] = expf(logits[a * N + b] - top);
        for (int b = 0; b < N; b++) s->soft[a * N + b] /= total;
    }
    for (int i = 0; i < MIX; i++) start[i] = s->soft[i] + eps;
    s->count = 0;
    normalise(s, start, 1, eps);
    for (int i = 1; i < iters; i++) {
        normalise(s, s->steps[s->count - 1], 0, eps);
        normalise(s, s->steps[s->count - 1], 1, eps);
    }
}

/* grad: of the last matrix on entry, of the logits on return. */
static void sinkhorn_back(const struct sinkhorn *s, float *grad) {
    for (int k = s->count - 1; k >= 0; k--) {
        int columns = k % 2 == 0, group = columns ? 1 : N, item = columns ? N : 1;
        for (int g = 0; g < N; g++) {
            float sum = 0;
            for (int i = 0; i < N; i++) sum += grad[g * group + i * item] * s->steps[k][g * group + i * item];
            for (int i = 0; i < N; i++)
                grad[g * group + i * item] = (grad[g * group + i * item] - sum) / s->sums[k][g];
        }
    }
    for (int a = 0; a < N; a++) {
        float sum = dot(grad + a * N, s->soft + a * N, N);
        for (int b = 0; b < N; b++) grad[a * N + b] = s->soft[a * N + b] * (grad[a * N + b] - sum);
    }
}

struct gates {
    float r, m[GATES], pre[N], post[N], logits[MIX];
};

static void gates_of(struct gates *g, const float *raw, const float *h, const float *scale, const float *base, int d,
                     float rms_eps) {
    g->r = 1.0f / sqrtf(dot(h, h, N * d) / (N * d) + rms_eps);
    for (int i = 0; i < GATES; i++) g->m[i] = raw[i] * g->r;
    for (int i = 0; i < N; i++) g->pre[i] = sigmoid(g->m[i] * scale[0] + base[i]);
    for (int i = 0; i < N; i++) g->post[i] = sigmoid(g->m[N + i] * scale[1] + base[N + i]);
    for (int i = 0; i < MIX; i++) g->logits[i] = g->m[2 * N + i] * scale[2] + base[2 * N + i];
}

/* raw [rows, GATES] = fn h; writes x [rows, d] (the collapsed streams), post [rows, N], mix [rows, MIX]. */
void hc_gate(int rows, int d, int iters, float eps, float rms_eps, const float *raw, const float *h, const float *scale,
             const float *base, float *x, float *post, float *mix) {
    struct gates g;
    struct sinkhorn s;
    for (int row = 0; row < rows; row++, raw += GATES, h += N * d, x += d, post += N, mix += MIX) {
        gates_of(&g, raw, h, scale, base, d, rms_eps);
        sinkhorn(&s, g.logits, iters, eps);
        memcpy(mix, s.steps[s.count - 1], sizeof g.logits);
        float p0 = g.pre[0] + eps, p1 = g.pre[1] + eps, p2 = g.pre[2] + eps, p3 = g.pre[3] + eps;
        for (int i = 0; i < d; i++) x[i] = p0 * h[i] + p1 * h[d + i] + p2 * h[2 * d + i] + p3 * h[3 * d + i];
        for (int i = 0; i < N; i++) post[i] = 2 * g.post[i];
    }
}

void hc_gate_back(int rows, int d, int iters, float eps, float rms_eps, const float *raw, const float *h,
                  const float *scale, const float *base, const float *gx, const float *gpost, const float *gmix,
                  float *graw, float *gh, float *gscale, float *gbase) {
    struct gates g;
    struct sinkhorn s;
    float gz[GATES];
    for (int row = 0; row < rows; row++, raw += GATES, h += N * d, gx += d, gpost += N, gmix += MIX) {
        gates_of(&g, raw, h, scale, base, d, rms_eps);
        sinkhorn(&s, g.logits, iters, eps);
        memcpy(gz + 2 * N, gmix, sizeof g.logits);
        sinkhorn_back(&s, gz + 2 * N);
        for (int i = 0; i < N; i++) gz[i] = dot(gx, h + i * d, d) * g.pre[i] * (1 - g.pre[i]);
        for (int i = 0; i < N; i++) gz[N + i] = gpost[i] * 2 * g.post[i] * (1 - g.post[i]);
        float gr = 0;
        for (int i = 0; i < GATES; i++) {
            int kind = i < N ? 0 : i < 2 * N ? 1 : 2;
            gbase[i] += gz[i];
            gscale[kind] += gz[i] * g.m[i];
            float gm = gz[i] * scale[kind];
            graw[i] = gm * g.r;
            gr += gm * raw[i];
        }
        float back = -gr * g.r * g.r * g.r / (N * d);
        for (int j = 0; j < N; j++) {
            float p = g.pre[j] + eps;
            for (int i = 0; i < d; i++) gh[j * d + i] = p * gx[i] + back * h[j * d + i];
        }
        graw += GATES;
        gh += N * d;
    }
}

/* out[k] = post[k] y + sum_j mix[j][k] h[j]; out [rows, N, d]. */
void hc_expand(int rows, int d, const float *y, const float *h, const float *post, const float *mix, float *out) {
    for (int row = 0; row < rows; row++, y += d, h += N * d, post += N, mix += MIX, out += N * d)
        for (int k = 0; k < N; k++) {
            float p = post[k], a = mix[k], b = mix[N + k], c = mix[2 * N + k], e = mix[3 * N + k];
            for (int i = 0; i < d; i++)
                out[k * d + i] = p * y[i] + a * h[i] + b * h[d + i] + c * h[2 * d + i] + e * h[3 * d + i];
        }
}

void hc_expand_back(int rows, int d, const float *y, const float *h, const float *post, const float *mix,
                    const float *g, float *gy, float *gh, float *gpost, float *gmix) {
    for (int row = 0; row < rows; row++, y += d, h += N * d, post += N, mix += MIX, g += N * d) {
        for (int i = 0; i < d; i++)
            gy[i] = post[0] * g[i] + post[1] * g[d + i] + post[2] * g[2 * d + i] + post[3] * g[3 * d + i];
        for (int j = 0; j < N; j++) {
            const float *m = mix + j * N;
            for (int i = 0; i < d; i++)
                gh[j * d + i] = m[0] * g[i] + m[1] * g[d + i] + m[2] * g[2 * d + i] + m[3] * g[3 * d + i];
            for (int k = 0; k < N; k++) gmix[j * N + k] = dot(h + j * d, g + k * d, d);
        }
        for (int k = 0; k < N; k++) gpost[k] = dot(y, g + k * d, d);
        gy += d, gh += N * d, gpost += N, gmix += MIX;
    }
}

/* Norm (if `norm`; with weight w, which may be null), then rotation of the last `rot` channels.
 * Row r is at position (r / heads) % length; cos, sin [length, rot / 2]; direction is 1, or -1 for the inverse rotation. */
void rms_rope(int rows, int d, int rot, int heads, int length, int norm, float direction, float eps, const float *x,
              const float *w, const float *cosine, const float *sine, float *y) {
    for (int row = 0; row < rows; row++, x += d, y += d) {
        const float *c = cosine + (row / heads % length) * (rot / 2), *s = sine + (row / heads % length) * (rot / 2);
        float r = norm ? 1.0f / sqrtf(dot(x, x, d) / d + eps) : 1.0f;
        if (w)
            for (int i = 0; i < d; i++) y[i] = x[i] * r * w[i];
        else
            for (int i = 0; i < d; i++) y[i] = x[i] * r;
        float *z = y + d - rot;
        for (int i = 0; i < rot / 2; i++) {
            float a = z[2 * i], b = z[2 * i + 1], t = s[i] * direction;
            z[2 * i] = a * c[i] - b * t;
            z[2 * i + 1] = a * t + b * c[i];
        }
    }
}

/* gw may be null, as w. */
void rms_rope_back(int rows, int d, int rot, int heads, int length, int norm, float direction, float eps,
                   const float *x, const float *w, const float *cosine, const float *sine, const float *g, float *gx,
                   float *gw) {
    for (int row = 0; row < rows; row++, x += d, g += d, gx += d) {
        const float *c = cosine + (row / heads % length) * (rot / 2), *s = sine + (row / heads % length) * (rot / 2);
        memcpy(gx, g, d * sizeof *g);
        float *z = gx + d - rot;
        for (int i = 0; i < rot / 2; i++) {
            float a = z[2 * i], b = z[2 * i + 1], t = -s[i] * direction;
            z[2 * i] = a * c[i] - b * t;
            z[2 * i + 1] = a * t + b * c[i];
        }
        if (!norm) continue;
        float r = 1.0f / sqrtf(dot(x, x, d) / d + eps);
        if (w)
            for (int i = 0; i < d; i++) {
                gw[i] += gx[i] * x[i] * r;
                gx[i] *= w[i];
            }
        float back = dot(gx, x, d) * r * r / d;
        for (int i = 0; i < d; i++) gx[i] = r * (gx[i] - back * x[i]);
    }
}

/* What the query at `position` sees of `keys` tokens from `oldest` on and of the entries after them: columns [lo, hi) and
 * [keys, end). */
static void visible(int position, int oldest, int window, int keys, int entries, int ratio, int *lo, int *hi, int *end) {
    *lo = position + 1 - window > oldest ? position + 1 - window - oldest : 0;
    *hi = position + 1 - oldest < keys ? position + 1 - oldest : keys;
    int seen = ratio ? (position + 1) / ratio : 0;
    *end = keys + (seen < entries ? seen : entries);
}

static float span_max(const float *row, int from, int to, float top) {
    for (int i = from; i < to; i++) top = fmaxf(top, row[i]);
    return top;
}

/* exp(scale x - shift) for arguments that are not positive: 2^k times a polynomial, seven digits. */
static float span_exp(float *row, int from, int to, float scale, float shift) {
    float total = 0;
    for (int i = from; i < to; i++) {
        float t = fmaxf((row[i] * scale - shift) * 1.44269504f, -126.0f);
        float k = nearbyintf(t), f = (t - k) * 0.693147181f;
        float p = 1 + f * (1 + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f * (1.0f / 720))))));
        union { int bits; float value; } power = {((int)k + 127) << 23};
        total += row[i] = p * power.value;
    }
    return total;
}

/* Logits [batch, length, heads, columns] -> weights, in place; the sink takes its share. The first query is at `first`. */
void attend(int batch, int length, int heads, int columns, int keys, int first, int oldest, int window, int ratio, float scale,
            const float *sink, float *rows) {
    for (int b = 0; b < batch; b++)
        for (int t = 0; t < length; t++) {
            int lo, hi, end;
            visible(first + t, oldest, window, keys, columns - keys, ratio, &lo, &hi, &end);
            for (int h = 0; h < heads; h++, rows += columns) {
                float top = span_max(rows, lo, hi, -1e30f);
                top = fmaxf(span_max(rows, keys, end, top) * scale, sink[h]);
                float total = span_exp(rows, lo, hi, scale, top) + span_exp(rows, keys, end, scale, top);
                float share = 1.0f / (total + expf(sink[h] - top));
                for (int i = 0; i < lo; i++) rows[i] = 0;
                for (int i = lo; i < hi; i++) rows[i] *= share;
                for (int i = hi; i < keys; i++) rows[i] = 0;
                for (int i = keys; i < end; i++) rows[i] *= share;
                for (int i = end; i < columns; i++) rows[i] = 0;
            }
        }
}

/* grad: of the weights on entry, of the logits on return. */
void attend_back(int batch, int length, int heads, int columns, float scale, const float *weights, float *grad,
                 float *gsink) {
    for (int row = 0; row < batch * length; row++)
        for (int h = 0; h < heads; h++, weights += columns, grad += columns) {
            float sum = 0, total = 0;
            for (int i = 0; i < columns; i++) sum += weights[i] * grad[i], total += weights[i];
            for (int i = 0; i < columns; i++) grad[i] = scale * weights[i] * (grad[i] - sum);
            gsink[h] -= (1 - total) * sum;
        }
}

/* inner = silu(min(gate, limit)) clamp(up, limit) weight, the two halves of both [rows, 2 d] side by side; weight may be null. */
void swiglu(int rows, int d, float limit, const float *both, const float *weight, float *inner) {
    for (int row = 0; row < rows; row++, both += 2 * d, inner += d) {
        float w = weight ? weight[row] : 1.0f;
        for (int i = 0; i < d; i++) {
            float g = fminf(both[i], limit), u = fmaxf(fminf(both[d + i], limit), -limit);
            inner[i] = g / (1.0f + expf(-g)) * u * w;
        }
    }
}

void swiglu_back(int rows, int d, float limit, const float *both, const float *weight, const float *g, float *gboth,
                 float *gweight) {
    for (int row = 0; row < rows; row++, both += 2 * d, gboth += 2 * d, g += d) {
        float w = weight ? weight[row] : 1.0f, gw = 0;
        for (int i = 0; i < d; i++) {
            float a = fminf(both[i], limit), u = fmaxf(fminf(both[d + i], limit), -limit);
            float s = 1.0f / (1.0f + expf(-a)), silu = a * s;
            gw += g[i] * silu * u;
            gboth[i] = both[i] <= limit ? g[i] * w * u * s * (1 + a * (1 - s)) : 0;
            gboth[d + i] = fabsf(both[d + i]) <= limit ? g[i] * w * silu : 0;
        }
        if (weight) gweight[row] = gw;
    }
}
