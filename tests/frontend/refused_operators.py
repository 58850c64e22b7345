"""Operators of `torch.testing` that are refused, at least for one of their first two samples, and why."""

_WHY = {
    "shapes or control flow that depend on the data": (
        "item allclose combinations corrcoef cov equal masked_select narrow tensor_split unique "
        "unique_consecutive nonzero argwhere nn_functional_gaussian_nll_loss"
    ),
    "random numbers": ("exponential nn_functional_fractional_max_pool2d nn_functional_fractional_max_pool3d"),
    "linear algebra: decompositions of matrices": (
        "cholesky cholesky_inverse cholesky_solve geqrf lu_unpack lu lu_solve matrix_exp ormqr qr "
        "triangular_solve svd svd_lowrank pca_lowrank pinverse logdet norm_nuc linalg_det "
        "linalg_cholesky linalg_cholesky_ex linalg_cond linalg_eig linalg_eigvals linalg_eigh linalg_eigvalsh "
        "linalg_householder_product linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq "
        "linalg_lstsq_grad_oriented linalg_qr linalg_slogdet linalg_lu_factor "
        "linalg_lu_factor_ex linalg_lu linalg_lu_solve linalg_inv linalg_inv_ex linalg_solve linalg_solve_ex "
        "linalg_solve_triangular linalg_matrix_rank linalg_matrix_rank_hermitian linalg_pinv "
        "linalg_pinv_singular linalg_pinv_hermitian linalg_svd linalg_svdvals linalg_tensorinv "
        "linalg_tensorsolve"
    ),
    "no converter yet": "hash_tensor",
    "training: dropout, losses, gradients": (
        "nn_functional_linear_cross_entropy_chunked nn_functional_linear_cross_entropy_chunked_none "
        "max_pool2d_with_indices_backward "
        "nn_functional_multi_head_attention_forward nn_functional_ctc_loss"
    ),
    "memory of tensors that are not contiguous": ("as_strided_partial_views"),
    "sparse tensors": ("to_sparse sparse_sampled_addmm sparse_mm_reduce"),
    "kernels of GPUs": (
        "jiterator_unary jiterator_binary jiterator_4inputs_with_extra_args jiterator_binary_return_by_ref "
        "jiterator_2inputs_2outputs"
    ),
}
REFUSED = {name: reason for reason, names in _WHY.items() for name in names.split()}
