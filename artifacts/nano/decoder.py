"""The decoder as it is trained: transformers' own modules and parameters, with a faster forward and backward.

Same arithmetic as `OlmoeModel` (a test compares both), but experts are one function with a handwritten gradient:
tokens sorted by expert, one matrix product per expert. On CPU that is more than twice as fast in training.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transform.molmoe.modeling_molmoe import MolmoEDecoder


class Experts(torch.autograd.Function):
    """y[t] = sum over j of weight[t, j] * down(silu(gate x[t]) * up x[t]) of expert index[t, j].

    x [T, d], index [T, k] int64, weight [T, k], gate_up [E, 2I, d], down [E, d, I] -> [T, d].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """Sort, multiply expert by expert, weigh, sum."""
        k, inner = index.shape[1], down.shape[2]
        flat = index.flatten()
        order = flat.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        ends = flat.bincount(minlength=len(down)).cumsum(0).tolist()
        rows = list(zip([0, *ends[:-1]], ends, strict=True))
        token = order // k
        inputs = x.index_select(0, token)
        pre = inputs.new_empty(len(inputs), 2 * inner)
        for e, (a, b) in enumerate(rows):
            torch.mm(inputs[a:b], gate_up[e].t(), out=pre[a:b])
        hidden = F.silu(pre[:, :inner]) * pre[:, inner:]
        outputs = torch.empty_like(inputs)
        for e, (a, b) in enumerate(rows):
            torch.mm(hidden[a:b], down[e].t(), out=outputs[a:b])
        picked = outputs.index_select(0, place).view(len(x), k, -1)
        ctx.save_for_backward(inputs, pre, hidden, picked, weight, gate_up, down, order, place)
        ctx.rows = rows
        return torch.bmm(weight.unsqueeze(1), picked).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x, weight, gate_up and down."""
        (dy,) = gradients
        inputs, pre, hidden, picked, weight, gate_up, down, order, place = ctx.saved_tensors
        k, inner = weight.shape[1], down.shape[2]
        dweight = torch.bmm(picked, dy.unsqueeze(2)).squeeze(2)
        doutputs = dy.index_select(0, order // k) * weight.flatten()[order].unsqueeze(1)
        dhidden, ddown = torch.empty_like(hidden), torch.empty_like(down)
        for e, (a, b) in enumerate(ctx.rows):
            torch.mm(doutputs[a:b], down[e], out=dhidden[a:b])
            torch.mm(doutputs[a:b].t(), hidden[a:b], out=ddown[e])
        gate, up = pre[:, :inner], pre[:, inner:]
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        dpre = torch.empty_like(pre)
        torch.mul(dhidden * up, sigmoid + silu * (1 - sigmoid), out=dpre[:, :inner])
        torch.mul(dhidden, silu, out=dpre[:, inner:])
        dinputs, dgate_up = torch.empty_like(inputs), torch.empty_like(gate_up)
        for e, (a, b) in enumerate(ctx.rows):
            torch.mm(dpre[a:b], gate_up[e], out=dinputs[a:b])
            torch.mm(dpre[a:b].t(), inputs[a:b], out=dgate_up[e])
        dx = dinputs.index_select(0, place).view(-1, k, inputs.shape[1]).sum(1)
        return dx, None, dweight, dgate_up, ddown


def forward(
    decoder: MolmoEDecoder, hidden: Tensor, positions: Tensor, mask: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the decoder on embeddings [B, S, d].

    positions [B, S]; mask [B, 1, S, S], true where a position may be looked at; valid [B, S], false on padding.
    Returns the normed states [B, S, d], the balance loss and the router z-loss (means over blocks; Switch
    Transformer eq. 4 with top-k, ST-MoE eq. 5), and the share of routed slots of each expert [blocks, E].
    """
    config = decoder.config
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    cos, sin = (part.unsqueeze(1) for part in decoder.rotary_emb(hidden, positions))
    b, s, d = hidden.shape
    chosen = valid.flatten()

    def turn(x: Tensor) -> Tensor:
        x = x.view(b, s, heads, -1).transpose(1, 2)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    balance, z_loss, loads = [], [], []
    for layer in decoder.layers:
        attention, moe = layer.self_attn, layer.mlp
        x = F.rms_norm(hidden, (d,), layer.input_layernorm.weight, eps)
        weights = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
        q, k, v = F.linear(x, weights).chunk(3, -1)
        q = turn(F.rms_norm(q, (d,), attention.q_norm.weight, eps))
        k = turn(F.rms_norm(k, (d,), attention.k_norm.weight, eps))
        v = v.reshape(b, s, heads, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = hidden + F.linear(mixed.transpose(1, 2).reshape(b, s, d), attention.o_proj.weight)

        x = F.rms_norm(hidden, (d,), layer.post_attention_layernorm.weight, eps)[valid]
        logits = F.linear(x, moe.gate.weight)
        probabilities = logits.softmax(-1)
        weight, index = probabilities.topk(moe.gate.top_k, -1)
        y = Experts.apply(x, index, weight, moe.experts.gate_up_proj, moe.experts.down_proj)
        hidden = hidden + torch.zeros_like(hidden).flatten(0, 1).index_put((chosen.nonzero()[:, 0],), y).view(b, s, d)

        share = index.flatten().bincount(minlength=logits.shape[-1]) / index.numel()
        balance.append(logits.shape[-1] * (share * probabilities.mean(0)).sum())
        z_loss.append(logits.logsumexp(-1).pow(2).mean())
        loads.append(share)
    hidden = F.rms_norm(hidden, (d,), decoder.norm.weight, eps)
    return hidden, torch.stack(balance).mean(), torch.stack(z_loss).mean(), torch.stack(loads)
